"""One viewer of the live pictures: gets the newest of each source that it watches, at its own speed."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from pipeline.errors import OptionError
from pipeline.page.board import Board
from pipeline.page.channel import Channel
from pipeline.page.orders import ORDERS
from pipeline.render.controls import Command

WINDOW = 3
"""Pictures of a source that may be on their way to a viewer; it says "shown" for each, and then gets the newest. What lies in
the buffers of a slow network would be old."""

HEADER = struct.Struct("<B3xI")
"""Before each picture: the source's position, the frame's number."""

# Keys that change a setting; the others are the viewer's own, or of the window alone.
_KEYS = frozenset("mMn+=-[]bhl")
_FLIGHT = "flight"


class Socket(Protocol):
    """What a viewer needs of a WebSocket."""

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message; returns when the network has room for another."""

    async def send_str(self, data: str) -> None:
        """Send a text message, likewise."""


class Viewer:
    """Sends to a socket until it fails; on the page's event loop.

    The viewer's messages are JSON: ``{"watch": [0, 2]}`` (positions of the sources, none at first), ``{"shown": 0}`` (a picture
    of a source was shown), ``{"key": "m"}``, ``{"set": {"alpha": 0.7}}``, ``{"type": "flight"}`` (have the flight
    recorder write), and what `Orders.obey` takes.

    Args:
        socket: where to send.
        channels: gives those of all sources, in the order of the board's.
        board: what to tell.
        send_s: a message that is not taken within this time ends the viewer.
        changed: called after a setting was changed.
    """

    def __init__(
        self,
        socket: Socket,
        channels: Callable[[], Sequence[Channel]],
        board: Board,
        *,
        send_s: float,
        changed: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._channels_now = channels
        self._board = board
        self._send_s = send_s
        self._changed = changed
        self._news = asyncio.Event()
        self._answers: list[str] = []
        self._told_changes = -1
        self._begin()

    def _begin(self) -> None:
        """With the sources that there are now, none of which is watched."""
        self._channels = self._channels_now()
        self._zones = ""  # as they were told last
        self._watched: set[int] = set()
        self._under_way = [0] * len(self._channels)
        self._open = [asyncio.Event() for _ in self._channels]  # it is watched and has room
        self._line = asyncio.Lock()

    async def send_all(self) -> None:
        """Send pictures and states; ends only by an error or by being cancelled.

        Raises:
            TimeoutError: a message was not taken in time.
            ConnectionError: the viewer has gone.
        """
        while True:
            await self._say_hello()
            self.tell()
            tasks = [asyncio.create_task(self._send_pictures(source)) for source in range(len(self._channels))]
            tasks.append(asyncio.create_task(self._send_states()))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what ended it; else the sources are others now
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._watch(set())
            self._begin()

    def tell(self) -> None:
        """Have the board's text sent, unless an older one still waits: then that is replaced."""
        self._news.set()

    def receive(self, text: str) -> None:
        """Do what a message of the viewer says; what is not understood is answered in one line."""
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise OptionError(f"message: expected an object, got {type(message).__name__}")
            self._obey(message)
        except (ValueError, RecursionError) as error:  # OptionError and JSON's own are ValueErrors
            if len(self._answers) < 4:
                self._answers.append(json.dumps({"type": "refused", "text": str(error)[:200]}))
                self._news.set()

    def _obey(self, message: dict[str, Any]) -> None:
        if "shown" in message:
            source = self._position(message["shown"])
            self._under_way[source] = max(0, self._under_way[source] - 1)
            self._update(source)
        if "watch" in message:
            positions = message["watch"]
            if not isinstance(positions, list) or len(positions) > len(self._channels):
                raise OptionError("watch: expected a list of positions of sources")
            self._watch({self._position(position) for position in positions})
        is_order = message.get("type") in ORDERS
        if "key" in message or "set" in message or is_order or message.get("type") == _FLIGHT:
            change(self._board, message)
            if is_order:
                self._zones = ""  # also where they are as before: who waits for them is to hear of it
            self._changed()

    def _position(self, value: object) -> int:
        if type(value) is not int or not 0 <= value < len(self._channels):
            raise OptionError(f"source: expected 0 to {len(self._channels) - 1}, got {value!r:.60}")
        return value

    def _watch(self, sources: set[int]) -> None:
        before, self._watched = self._watched, sources
        for source, channel in enumerate(self._channels):
            channel.watchers += (source in sources) - (source in before)
            self._update(source)

    def _update(self, source: int) -> None:
        if source in self._watched and self._under_way[source] < WINDOW:
            self._open[source].set()
        else:
            self._open[source].clear()

    async def _send_pictures(self, source: int) -> None:
        channel, number = self._channels[source], 0
        while True:
            await self._open[source].wait()
            await channel.after(number)
            async with self._line:  # sources take turns
                if not self._open[source].is_set():
                    continue
                picture = await channel.after(number)  # a newer one may have come while others were sent
                self._under_way[source] += 1
                self._update(source)
                header = HEADER.pack(source, picture.index & 0xFFFFFFFF)
                await self._send(self._socket.send_bytes(header + picture.jpeg))
                number = picture.number

    async def _say_hello(self) -> None:
        self._told_changes = self._board.changes
        await self._send(self._socket.send_str(self._board.hello()))

    async def _send_states(self) -> None:
        """Send states until the sources are others."""
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._line:
                if self._channels != self._channels_now():
                    return
                if self._told_changes != self._board.changes:
                    await self._say_hello()
                answers, self._answers = self._answers, []
                zones = self._board.orders.zones()
                if zones != self._zones:
                    self._zones = zones
                    answers.insert(0, zones)
                for text in (self._board.text, *answers):
                    await self._send(self._socket.send_str(text))

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            await asyncio.wait_for(sending, self._send_s)
        except asyncio.TimeoutError as error:  # another class than TimeoutError before Python 3.11
            raise TimeoutError(f"the viewer took nothing for {self._send_s:g} s") from error


def change(board: Board, message: dict[str, Any]) -> None:
    """Do as a viewer asks: ``{"key": "m"}``, ``{"set": {"alpha": 0.7}}``, ``{"type": "flight"}``, or what `Orders.obey` takes.

    Raises:
        OptionError: it is not understood, or the page is read-only.
    """
    _check_rights(board)
    if "key" in message:
        key = message["key"]
        if not isinstance(key, str) or key not in _KEYS or board.controls.press(ord(key)) is not Command.REDRAW:
            raise OptionError(f"key: expected one of {' '.join(sorted(_KEYS))}, got {key!r:.60}")
    if "set" in message:
        if not isinstance(message["set"], dict):
            raise OptionError("set: expected settings by name")
        board.controls.change(message["set"])
    if message.get("type") == _FLIGHT:
        take_flight(board, "page")
    if message.get("type") in ORDERS:
        board.orders.obey(message)


def take_flight(board: Board, asked: str) -> None:
    """Have the flight recorder write the last seconds.

    Args:
        board: of the run.
        asked: by whom: "page" or "api".

    Raises:
        OptionError: nothing is written, with the reason, or the page is read-only.
    """
    _check_rights(board)
    if reason := board.run.take_flight(asked):
        raise OptionError(reason)


def _check_rights(board: Board) -> None:
    if board.read_only:
        raise OptionError("the page is read-only: it was started with --serve-read-only")
