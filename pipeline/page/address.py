"""Where the page listens, and how its address is written."""

from __future__ import annotations

import ipaddress
import re
import socket

from pipeline.errors import OptionError, SinkError

# Longer queues only hold connections that nobody answers.
_BACKLOG = 32


def listen(address: str) -> socket.socket:
    """Open the socket of ``--serve``.

    Args:
        address: "HOST:PORT", "HOST", ":PORT" or "PORT", of 127.0.0.1; an IPv6 address in brackets. Port 0: a free one.

    Returns:
        A listening socket that is the caller's.

    Raises:
        OptionError: it is written otherwise.
        SinkError: there is no such address here, the port is taken, or it needs rights that this process has not.
    """
    host, port = _parts(address)
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 letters
        raise SinkError(f"--serve {address}: {host} is not known here ({_reason(error)}): use 127.0.0.1") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        listening.bind(place)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise SinkError(f"--serve {address}: cannot listen there ({_reason(error)}): choose another address") from error
    return listening


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ip_address(listening.getsockname()[0]).is_loopback


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its zone; an IPv4 address inside of IPv6 is the IPv4 address.

    Raises:
        ValueError: the text is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def url_of(listening: socket.socket) -> str:
    """The address for a browser; of a socket on all addresses, the one from which this machine reaches others."""
    host, port = listening.getsockname()[:2]
    address = ip_address(host)
    if address.is_unspecified:
        address = _own_address(listening.family)
    return f"http://[{address}]:{port}/" if address.version == 6 else f"http://{address}:{port}/"


def host_name(host: str) -> str:
    """A Host header's name without its port, in lower case, an IPv6 address without brackets; empty: it is malformed."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?", host)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def _parts(address: str) -> tuple[str, int]:
    spelled = f":{address}" if re.fullmatch(r"[0-9]+", address) else address
    found = re.fullmatch(r"(\[[^\[\]]+\]|[^\[\]:]*)(?::([0-9]{1,5}))?", spelled)
    if found is None or not address or (found[2] and int(found[2]) > 65535):
        raise OptionError(f"--serve: expected HOST:PORT such as 127.0.0.1:8080 or [::1]:8080, got {address!r}")
    return found[1].strip("[]") or "127.0.0.1", int(found[2] or 8080)


def _own_address(family: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    beyond = ("192.0.2.1", 9) if family == socket.AF_INET else ("2001:db8::1", 9)  # documentation's; nothing is sent
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(beyond)
            return ip_address(probe.getsockname()[0])
        except OSError:  # no network yet
            return ip_address("127.0.0.1" if family == socket.AF_INET else "::1")


def _reason(error: OSError | UnicodeError) -> str:
    return str(getattr(error, "strerror", None) or error)
