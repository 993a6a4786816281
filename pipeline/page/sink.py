"""The output that is a page: gives each frame to whoever watches, and waits for nobody."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.errors import SinkError
from pipeline.frames.frame import Frame
from pipeline.page.access import Access, new_token
from pipeline.page.address import is_loopback, listen, url_of
from pipeline.page.board import Board
from pipeline.page.channel import Channel
from pipeline.page.metrics import Metrics
from pipeline.page.options import PageOptions, Watched
from pipeline.page.server import PageServer
from pipeline.render.annotations import Annotations
from pipeline.render.controls import Controls
from pipeline.render.hud import area_percent, legend_entries
from pipeline.render.overlay import Renderer
from pipeline.sinks.base import Sink
from pipeline.sinks.json_lines import zone_entry
from pipeline.sinks.kinds import SinkKind
from pipeline.sources.base import Source
from pipeline.terminal import logger_of

log = logger_of(__name__)

PAGE = SinkKind(
    name="page",
    opens="PageSink",
    help="a page with the live picture, its settings and numbers",
    order=100,
    extra="page",
    option="--serve",
)

_LEGEND_EVERY_S = 0.5
_START_S = 10.0
_CLOSE_S = 1.0


class PageSink(Sink):
    """Serves the page from a thread of its own; `write` costs one copy of the view, at most.

    Args:
        options: where, and who may do what.
        watched: the run that it tells of; where the page is, is logged, with the token if one was made.
        renderer: the page changes its look.
        annotations: the page changes its flags.

    Attributes:
        url: the page's address, with the token if one was made.

    Raises:
        OptionError: the address, a name or the token is written otherwise.
        SinkError: it cannot listen there.
    """

    def __init__(self, options: PageOptions, watched: Watched, renderer: Renderer, annotations: Annotations) -> None:
        listening = listen(options.address)
        try:
            made = new_token() if options.token is None and not is_loopback(listening) else None
            access = Access(options.token or made, options.names)
        except BaseException:
            listening.close()
            raise
        self._listening = listening
        self.url = url_of(listening) + (f"?token={made}" if made else "")
        self._renderer = renderer
        self._classes = watched.classes
        self._legend_due_s = dict.fromkeys(watched.telemetries, 0.0)
        # One thread: more would take the engine's cores.
        self._encoder = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="page-encode")
        self._channels = {name: Channel(name, self._encoder) for name in watched.telemetries}
        self._zones, self._find = watched.zones, watched.find
        controls = Controls(renderer, annotations, watched.masks)
        self._board = Board(watched, controls, read_only=options.read_only)
        metrics = Metrics(self._board.snapshots, lambda: self._board.viewers, watched)
        self._server = PageServer(
            listening, dict(self._channels), self._board, access, metrics, options, healthy=watched.healthy
        )
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="page", daemon=True)
        self._thread.start()
        started.wait(_START_S)
        log.warning(f"page: {self.url}")  # also to who asked for quiet: a token that was made is said nowhere else

    def write(self, frame: Frame) -> None:
        """Make the view the newest picture of its source.

        Raises:
            SinkError: the server has ended by an error of its own.
        """
        if frame.mask is None or frame.lying_view is None:
            raise ValueError(f"{frame!r} has no mask or view yet")
        if self._error is not None:
            raise SinkError(f"page: its server has ended ({self._error!r})") from self._error
        copied = self._channels[frame.source].put(frame)
        now_s = time.monotonic()
        if copied and now_s >= self._legend_due_s[frame.source]:
            self._legend_due_s[frame.source] = now_s + _LEGEND_EVERY_S
            look, task = self._renderer.look, self._renderer.task
            percents = area_percent(frame.mask, task, look.threshold, len(self._classes))
            self._board.legends[frame.source] = legend_entries(percents, self._classes, look.palette, task)
            self._board.in_zones[frame.source] = self._in_zones(frame)

    def _in_zones(self, frame: Frame) -> dict[str, dict[str, Any]]:
        """What is in the zones that are drawn; looked at by the outputs already, or else only as often as it is shown."""
        if self._find is None or self._zones is None or not self._zones.zones:
            return {}
        return {name: zone_entry(classes) for name, classes in self._find(frame).zones.items()}

    def join(self, source: Source) -> None:
        """Show one more source; its first frame comes after this."""
        name = source.info.name
        channel = self._channels[name] = Channel(name, self._encoder)
        channel.attach(self._loop)
        self._legend_due_s[name] = 0.0
        self._on_page(lambda: self._server.join(channel, source.telemetry))

    def leave(self, source: Source) -> None:
        """Show a source no more; its last frame has come."""
        name = source.info.name
        self._legend_due_s.pop(name)
        channel = self._channels.pop(name)
        self._on_page(lambda: self._server.leave(channel))

    def _on_page(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the server has ended, which ``write`` tells
                self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        """Tell the viewers and end the server, within a second whatever they do."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_S)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            for channel in self._channels.values():
                channel.attach(self._loop)
            started.set()
            try:
                await self._server.serve(self._stop)
            finally:
                for channel in list(self._channels.values()):
                    channel.attach(None)

        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - handed to the pipeline's thread, which raises it
            self._error = error
        finally:
            started.set()
            self._encoder.shutdown(wait=False)
            self._listening.close()  # else who connects would wait for an answer
