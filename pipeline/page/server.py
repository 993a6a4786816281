"""The page's HTTP server: what each address answers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.errors import OptionError
from pipeline.page.access import Access
from pipeline.page.board import Board, unready
from pipeline.page.channel import Channel
from pipeline.page.guard import Guard, text
from pipeline.page.metrics import CONTENT_TYPE, Metrics
from pipeline.page.newcomers import Newcomers
from pipeline.page.options import PageOptions
from pipeline.page.viewer import Viewer, change, take_flight
from pipeline.stages.telemetry import Telemetry

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/live.js": ("live.js", "text/javascript"),
    "/tile.js": ("tile.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/element.js": ("element.js", "text/javascript"),
    "/zones.js": ("zones.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
    "/agreement.js": ("agreement.js", "text/javascript"),
    "/figures.js": ("figures.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_MAX_BODY_BYTES = 4096
# A slow network's buffer holds pictures that are old when they arrive.
_SEND_BUFFER_BYTES = 256 * 1024
_REFRESH_S = 0.5
_SNAPSHOT_S = 2.0
_CLOSE_S = 0.3
_BOUNDARY = "frame"
# Connections that wait for their first answer, in the kernel; and how many of them are taken in one round of the loop. A newcomer is
# heard a few rounds later, and may not be pushed out before.
_BACKLOG, _AT_ONCE = 512, 2

# Bugs of ours are told with their traceback. What anyone may send is not: it could fill a disk, and holds what was sent.
_LOGGER = logging.getLogger(__name__)
_OF_STRANGERS = (HttpProcessingError, web.RequestPayloadError, ConnectionError)
_LOGGER.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], _OF_STRANGERS)))


class PageServer:
    """Serves until told to stop; on its own event loop.

    Args:
        listening: the socket; closed at the end.
        channels: of each source, by name; changed here alone.
        board: what viewers are told; refreshed here.
        access: who is let in.
        metrics: for ``/metrics``.
        options: limits on all who connect, and when a source is ready.
        healthy: says what is wrong with the data path, or nothing.
    """

    def __init__(
        self,
        listening: socket.socket,
        channels: dict[str, Channel],
        board: Board,
        access: Access,
        metrics: Metrics,
        options: PageOptions,
        *,
        healthy: Callable[[], str],
    ) -> None:
        self._listening = listening
        self._channels = channels
        self._board = board
        self._metrics = metrics
        self._healthy = healthy
        self._ready_within_s = options.ready_within_s
        self._limits = options.limits
        self._newcomers = Newcomers(options.limits.newcomers, options.limits.newcomer_s)
        self._guard = Guard(access, listening.getsockname()[1], options.limits.send_s, self._newcomers.let_in)
        self._files = {path: (kind, (_STATIC / name).read_bytes()) for path, (name, kind) in _FILES.items()}
        self._viewers: dict[Viewer, web.WebSocketResponse] = {}
        self._streams = 0

    async def serve(self, stop: asyncio.Event) -> None:
        """Answer until ``stop`` is set; then tell the viewers and leave within a second."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        self._guard.install(app)
        for path in self._files:
            app.router.add_get(path, self._get_file)
        app.router.add_get("/live", self._live, allow_head=False)
        app.router.add_get("/stream.mjpg", self._stream, allow_head=False)
        app.router.add_get("/snapshot.jpg", self._snapshot, allow_head=False)
        app.router.add_get("/state", self._state)
        app.router.add_post("/settings", self._settings)
        app.router.add_post("/flight", self._flight)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._ready)
        runner = web.AppRunner(
            app,
            access_log=None,  # it would hold tokens
            logger=_LOGGER,
            handler_cancellation=True,
            keepalive_timeout=self._limits.request_s,
            lingering_time=1.0,
            shutdown_timeout=_CLOSE_S,
        )
        await runner.setup()
        answering = runner.server
        assert answering is not None

        loop = asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            if len(answering.connections) - len(self._newcomers) >= self._limits.connections:
                return _Refusing()
            connection = answering()
            loop.call_soon(self._newcomers.add, connection)  # what is not made yet cannot be pushed out
            return connection

        server = await loop.create_server(connect, sock=self._listening, backlog=_AT_ONCE)
        self._listening.listen(_BACKLOG)
        refreshing = asyncio.create_task(self._refresh())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([refreshing, stopping], return_when=asyncio.FIRST_COMPLETED)
            if refreshing.done():
                refreshing.result()  # raises what ended it
        finally:
            refreshing.cancel()
            stopping.cancel()
            server.close()
            transports = [connection.transport for connection in answering.connections]
            await self._say_goodbye()
            await runner.cleanup()
            for transport in transports:  # of those that do not read what was sent to them
                if transport is not None:
                    transport.abort()
            await asyncio.sleep(0)  # they end in the loop's next round

    def join(self, channel: Channel, telemetry: Telemetry) -> None:
        """Serve one more source; on the event loop, as `leave` is."""
        self._channels[channel.name] = channel
        self._board.join(channel.name, telemetry)
        self._refresh_now()

    def leave(self, channel: Channel) -> None:
        """Serve a source no more."""
        del self._channels[channel.name]
        self._board.leave(channel.name)
        channel.attach(None)
        self._refresh_now()

    async def _refresh(self) -> None:
        while True:
            self._refresh_now()
            await asyncio.sleep(_REFRESH_S)

    def _refresh_now(self) -> None:
        self._board.viewers = self.viewers
        self._board.refresh()
        for viewer in self._viewers:
            viewer.tell()

    @property
    def viewers(self) -> int:
        """How many look at live pictures."""
        return len(self._viewers) + self._streams

    async def _say_goodbye(self) -> None:
        closing = [
            response.close(code=WSCloseCode.GOING_AWAY, message=b"the pipeline has ended")
            for response in self._viewers.values()
        ]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), _CLOSE_S)

    # What the addresses answer.

    async def _get_file(self, request: web.Request) -> web.Response:
        kind, content = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if full := self._full():
            return full
        response = web.WebSocketResponse(
            heartbeat=self._limits.request_s, max_msg_size=_MAX_BODY_BYTES, compress=False, timeout=_CLOSE_S
        )
        if not response.can_prepare(request):
            return text(426, "expected a WebSocket")
        _keep_buffer_small(request)
        viewer = Viewer(
            response,
            lambda: list(self._channels.values()),
            self._board,
            send_s=self._limits.send_s,
            changed=self._refresh_now,
        )
        self._viewers[viewer] = response
        try:
            await response.prepare(request)
            sending = asyncio.create_task(viewer.send_all())
            sending.add_done_callback(lambda task: _end(request, task))
            try:
                async for message in response:
                    if message.type is WSMsgType.TEXT:
                        viewer.receive(message.data)
            finally:
                sending.cancel()
                ended = (await asyncio.gather(sending, return_exceptions=True))[0]
        finally:
            del self._viewers[viewer]
        if isinstance(ended, Exception) and not isinstance(ended, (TimeoutError, ConnectionError)):
            raise ended
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        channel = self._channel(request)
        if full := self._full():
            return full
        _keep_buffer_small(request)
        response = web.StreamResponse(headers={"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"})
        channel.watchers += 1
        self._streams += 1
        try:
            await response.prepare(request)
            # A part ends with the next boundary, as browsers show it only then.
            await response.write(f"--{_BOUNDARY}\r\n".encode())
            picture = await channel.after(0)
            while True:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n\r\n"
                part = b"".join((head.encode(), picture.jpeg, f"\r\n--{_BOUNDARY}\r\n".encode()))
                await asyncio.wait_for(response.write(part), self._limits.send_s)
                # Else the last one once more, which finds out whether the viewer is still there.
                with suppress(asyncio.TimeoutError):
                    picture = await asyncio.wait_for(channel.after(picture.number), self._limits.send_s)
        finally:
            channel.watchers -= 1
            self._streams -= 1

    async def _snapshot(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        try:
            picture = await asyncio.wait_for(channel.after(0), _SNAPSHOT_S)
        except asyncio.TimeoutError:
            return text(503, "no picture yet")
        return web.Response(body=picture.jpeg, content_type="image/jpeg")

    async def _state(self, _: web.Request) -> web.Response:
        return web.Response(text=self._board.text, content_type="application/json")

    async def _settings(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return text(415, "expected application/json")
        body = await asyncio.wait_for(request.read(), self._limits.request_s)
        try:
            change(self._board, {"set": json.loads(body)})
        except OptionError as error:
            return text(403 if self._board.read_only else 400, str(error))
        except (ValueError, RecursionError) as error:
            return text(400, f"expected JSON: {error}"[:200])
        self._refresh_now()
        return web.json_response(self._board.controls.settings())

    async def _flight(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":  # which no other site's form can send
            return text(415, "expected application/json")
        try:
            take_flight(self._board, "api")
        except OptionError as error:
            return text(403 if self._board.read_only else 409, str(error))
        self._refresh_now()
        return text(202, "the last seconds are being written")

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        problem = self._healthy()
        return text(503, problem) if problem else text(200, "ok")

    async def _ready(self, _: web.Request) -> web.Response:
        problem = unready(self._board.snapshots(), self._ready_within_s, self._board.run.outputs())
        return text(503, problem) if problem else text(200, "ok")

    def _full(self) -> web.Response | None:
        if self.viewers < self._limits.viewers:
            return None
        return text(503, f"there are {self.viewers} viewers already, as many as may be: close another page")

    def _channel(self, request: web.Request) -> Channel:
        name = request.query.get("source", next(iter(self._channels)))
        if name not in self._channels:
            raise web.HTTPNotFound(reason="no such source")
        return self._channels[name]


class _Refusing(asyncio.Protocol):
    """Ends a connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _end(request: web.Request, sending: asyncio.Task[None]) -> None:
    """End a connection to which nothing can be sent any more, so that nothing is received from it either."""
    if not sending.cancelled() and sending.exception() is not None and request.transport is not None:
        request.transport.abort()


def _keep_buffer_small(request: web.Request) -> None:
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
