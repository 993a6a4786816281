"""Why a camera does not let us in: the way to log in that it asks for."""

from __future__ import annotations

import re
import socket
import ssl

from pipeline.sources.address import Address

_ANSWER_BYTES = 16384


def unsupported_login(address: Address, timeout_s: float) -> str:
    """What a server asks for where FFmpeg knows none of its ways to log in; empty where it knows one, and where nobody can tell.

    FFmpeg takes Basic, and Digest with MD5. Asked without credentials, which this is no place for.

    Args:
        address: of an RTSP or HTTP server that has refused a connection.
        timeout_s: how long its answer is waited for.
    """
    is_rtsp = address.scheme.startswith("rtsp")
    path = "/" + address.bare_url.split("/", 3)[3] if address.bare_url.count("/") > 2 else "/"
    request = f"DESCRIBE {address.bare_url} RTSP/1.0\r\nCSeq: 1\r\n" if is_rtsp else f"GET {path} HTTP/1.0\r\n"
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain:
            connection = _encrypted(plain, address.host) if address.scheme in ("https", "rtsps") else plain
            connection.settimeout(timeout_s)
            connection.sendall(f"{request}Host: {address.host}:{address.port}\r\n\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer and len(answer) < _ANSWER_BYTES and (more := connection.recv(4096)):
                answer += more
    except (OSError, UnicodeError):
        return ""
    ways = re.findall(r"(?im)^www-authenticate:[ \t]*(\w+)([^\r\n]*)", answer.decode("latin-1"))
    offered = [_described(scheme.lower(), details) for scheme, details in ways]
    return "" if not offered or "" in offered else " or ".join(dict.fromkeys(offered))


def _encrypted(plain: socket.socket, host: str) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing secret is sent
    return context.wrap_socket(plain, server_hostname=host)


def _described(scheme: str, details: str) -> str:
    """A way to log in, in words; empty if FFmpeg knows it."""
    if scheme == "basic":
        return ""
    if scheme == "digest":
        algorithm = re.search(r'algorithm="?([\w-]+)', details, re.IGNORECASE)
        name = algorithm[1] if algorithm else "MD5"
        return "" if name.upper() in ("MD5", "MD5-SESS") else f"Digest with {name[:20]}"
    return scheme[:20].capitalize()
