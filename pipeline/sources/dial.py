"""Connections to the hosts that addresses name, and to no others: TLS is verified before anything is said."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from urllib.parse import urljoin

from pipeline.errors import OptionError, SourceError
from pipeline.sources.address import Address
from pipeline.sources.live import LostError
from pipeline.sources.options import LiveOptions

MAX_REDIRECTS = 5
_WRONG_NAME = 62  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH
_WRONG_ADDRESS = 64  # and X509_V_ERR_IP_ADDRESS_MISMATCH
_PEM = re.compile(rf"{ssl.PEM_HEADER}.+?{ssl.PEM_FOOTER}", re.DOTALL)


def dial(address: Address, options: LiveOptions) -> socket.socket:
    """A connection to an address's host, encrypted where its scheme says so; its time-out is ``options.connect_s``.

    Raises:
        LostError: nobody answers, or not in time.
        SourceError: the peer is not who it has to be.
    """
    try:
        return _connected(address, options)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS) and options.tls_verify != "yes":
            with contextlib.suppress(OSError):
                return _connected(address, options, pinned=True)
        raise SourceError(
            f"{address.name}: expected a certificate of {address.host} from an authority that is trusted, got another "
            f"({error.verify_message.rstrip('.')}): --tls-verify CA.pem names the authority, or the peer's own certificate"
        ) from None
    except ssl.SSLError as error:
        raise LostError(f"no TLS ({(error.reason or str(error)).replace('_', ' ').lower()})") from None
    except TimeoutError:
        raise LostError("no answer in time") from None
    except (OSError, UnicodeError) as error:
        raise LostError(str(getattr(error, "strerror", None) or error).lower()) from None


def require_certificates(address: Address, tls_verify: str) -> None:
    """Look for the file of certificates where one is named and an address needs it, before anything is connected to.

    Raises:
        OptionError: there is no such file.
    """
    if address.is_encrypted and tls_verify not in ("yes", "no") and not os.path.isfile(tls_verify):
        raise OptionError(
            f"--tls-verify {tls_verify}: expected yes, no or a file of certificates (PEM), got no such file"
        )


def may_log_in(address: Address, options: LiveOptions) -> bool:
    """Whether the peer may be told a password: not one that says it is encrypted and that nobody verifies."""
    return not address.is_encrypted or options.tls_verify != "no"


def redirected(address: Address, location: str, options: LiveOptions) -> Address:
    """Where a peer sends us, if we go there. Credentials go with us to the same host alone.

    Raises:
        SourceError: it is another host, no longer encrypted, or something else than a stream.
    """
    target = urljoin(re.sub("^rtsp", "http", address.bare_url), location.strip())
    if address.scheme.startswith("rtsp") and "://" not in location:
        target = re.sub("^http", "rtsp", target)
    family = address.scheme.rstrip("s")
    if not re.match(rf"{family}s?://[^/?#@]*(?:[/?#]|$)", target, re.IGNORECASE):
        raise SourceError(f"{address.name}: expected a stream, got a redirection to something else than {family}://")
    there = Address.parse(target)
    is_same_host = there.host.casefold() == address.host.casefold()
    if is_same_host and (there.is_encrypted or not address.is_encrypted):
        return there.with_credentials(address)
    what = f"host ({there.host})" if not is_same_host else "way, without encryption"
    if not options.follow_redirects or is_same_host:
        todo = "give the address itself" if is_same_host else "give its address, or --follow-redirects"
        raise SourceError(f"{address.name}: expected a stream, got a redirection to another {what}: {todo}")
    return there


def _connected(address: Address, options: LiveOptions, *, pinned: bool = False) -> socket.socket:
    plain = socket.create_connection((address.host, address.port), options.connect_s)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not address.is_encrypted:
            return plain
        secure = tls_context(options.tls_verify, pinned=pinned).wrap_socket(plain, server_hostname=address.host)
    except BaseException:
        plain.close()
        raise
    if pinned and secure.getpeercert(binary_form=True) not in _certificates(options.tls_verify):
        secure.close()
        raise ssl.SSLError("another certificate than those of the file")
    return secure


def tls_context(tls_verify: str, *, pinned: bool = False) -> ssl.SSLContext:
    """How a peer is verified.

    Args:
        tls_verify: as in ``LiveOptions``. Cameras often have a certificate of their own, of no name that they are reached by: in a
            file it stands for itself.
        pinned: the peer's name is not compared, for the caller compares the certificate itself.

    Raises:
        SourceError: the file holds no certificates.
    """
    if tls_verify == "yes":
        return ssl.create_default_context()
    if tls_verify == "no":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cafile=tls_verify)
    except OSError as error:
        raise SourceError(
            f"--tls-verify {tls_verify}: expected certificates as PEM, got a file that cannot be read as such"
        ) from error
    context.check_hostname = not pinned
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _certificates(path: str) -> list[bytes]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return [ssl.PEM_cert_to_DER_cert(text) for text in _PEM.findall(file.read())]
