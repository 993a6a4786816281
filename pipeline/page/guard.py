"""What every request passes: who is let in, how long an answer may take, and headers that keep other sites out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlencode

from aiohttp import web

from pipeline.page.access import Access

_PUBLIC = ("/style.css", "/icon.svg")  # what the page that asks for the token is made of
_FOR_PEOPLE = ("/stream.mjpg", "/snapshot.jpg", "/state")  # what they may open by hand, beside the page itself

_HEADERS = {
    "Server": "edgemask",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Stands before all handlers.

    Args:
        access: who is let in.
        port: of the page; browsers do not tell cookies of two ports apart.
        send_s: an answer that is not taken within this time ends the connection.
        let_in: told of each connection with a request that passes, but for what anybody gets.
    """

    def __init__(
        self, access: Access, port: int, send_s: float, let_in: Callable[[asyncio.BaseProtocol], None] = lambda _: None
    ) -> None:
        self._let_in = let_in
        self._access = access
        self._cookie_name = f"edgemask_{port}"
        self._send_s = send_s
        self._login = Path(__file__).with_name("static").joinpath("login.html").read_bytes()

    def install(self, app: web.Application) -> None:
        """Stand before the handlers of an application."""
        app.middlewares.append(self._pass)
        app.on_response_prepare.append(_add_headers)

    @web.middleware
    async def _pass(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            refused = self._refusal(request)
            if refused is None and request.path not in _PUBLIC:
                self._let_in(request.protocol)
            response = refused if refused is not None else await handler(request)
            if not response.prepared:
                await asyncio.wait_for(_send(request, response), self._send_s)
        except web.HTTPException as error:  # no such path or method, too long a body
            response = text(error.status, error.reason)
        except (asyncio.TimeoutError, TimeoutError, ConnectionError):  # the first two are one from Python 3.11 on
            if request.transport is not None:
                request.transport.abort()
            response = text(408, "too slow, or gone")  # which nobody gets
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        access, hosts = self._access, request.headers.getall("Host", [])
        local = request.transport.get_extra_info("sockname")[0] if request.transport is not None else ""
        if problem := access.host_problem(hosts, local):
            return text(403, problem)
        if problem := access.origin_problem(request.headers.getall("Origin", []), hosts[0]):
            return text(403, problem)
        if not access.needs_token or request.path in _PUBLIC:
            return None
        if access.cookie_fits(request.cookies.get(self._cookie_name, "")):
            return None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        by_header = scheme.lower() == "bearer"
        given = bearer.strip() if by_header else request.query.get("token", "")
        if not given:
            return self._token_wanted(request, "token needed: give it as ?token=… or as Authorization: Bearer …", b"")
        peer = request.remote or ""
        # Behind a proxy all have one address: who has the right token must not wait for those who guess.
        wait_s = access.wait_s(peer)
        if not access.token_fits(given, peer):
            if wait_s:
                return text(429, f"too many wrong tokens: try again in {wait_s:.0f} s")
            return self._token_wanted(request, "wrong token", b'<p class="problem" role="alert">Wrong token</p>')
        return None if by_header else self._logged_in(request)

    def _token_wanted(self, request: web.Request, problem: str, html: bytes) -> web.Response:
        if request.path != "/" or "text/html" not in request.headers.get("Accept", ""):
            return text(403, problem)
        body = self._login.replace(b"<!-- problem -->", html)
        return web.Response(status=403, body=body, content_type="text/html", charset="utf-8")

    def _logged_in(self, request: web.Request) -> web.Response:
        """To the same address without the token, which then is in no history and no log."""
        query = urlencode([(name, value) for name, value in request.query.items() if name != "token"])
        # Relative, for proxies that put the page under another path; and not whatever the request calls its path, since
        # //elsewhere would be another site.
        place = request.path[1:] if request.path in _FOR_PEOPLE else "./"
        response = web.Response(status=303, headers={"Location": place + (f"?{query}" if query else "")})
        response.set_cookie(self._cookie_name, self._access.cookie, httponly=True, samesite="Strict", path="/")
        return response


def text(status: int, line: str) -> web.Response:
    """An answer of one line."""
    return web.Response(status=status, text=f"{line}\n")


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    await response.prepare(request)
    await response.write_eof()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    policy = "default-src 'none'; frame-ancestors 'none'"
    if response.content_type == "text/html":
        host = request.headers.get("Host", "")  # it was checked; older Safaris want WebSockets named
        policy += (
            "; script-src 'self'; style-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'self'"
            f"; connect-src 'self' ws://{host} wss://{host}"
        )
    response.headers["Content-Security-Policy"] = policy
