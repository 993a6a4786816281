"""One source's newest picture: copied from the pipeline, encoded once for all who watch, never queued."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from pipeline.frames.frame import Frame, Image
from pipeline.render.square import squared

LONGEST_SIDE = 1280
"""Larger pictures are reduced to this width or height: more is not seen on a page and costs the network."""

_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 80)
_UNWATCHED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded view.

    Attributes:
        number: counts the pictures of a channel from 1, with gaps.
        index: the frame's position in the source.
        jpeg: the file.
    """

    number: int
    index: int
    jpeg: bytes


class Channel:
    """The newest view of a source.

    The pipeline's thread puts views in, which takes a copy (0.1 ms at 720p, 0.2 ms at 1080p) and waits for nobody; the
    page's event loop takes pictures out. A view is encoded (2.5 ms at 720p) only when somebody waits for it, on the
    executor, and all who wait get the same bytes. It holds at most two views and one picture.

    Args:
        name: the source's.
        executor: where views are encoded.

    Attributes:
        watchers: how many viewers look at it, changed by the event loop alone. While there are none, one view a second is
            copied, for the first who comes.
    """

    def __init__(self, name: str, executor: Executor) -> None:
        self.name = name
        self.watchers = 0
        self._executor = executor
        self._lock = threading.Lock()
        self._waiting: Image | None = None  # the newest view, until it is encoded
        self._spare: Image | None = None  # memory for the one after it
        self._number = self._index = 0
        self._sample_aspect = Fraction(1)
        self._due_s = 0.0
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # From here on the event loop's alone.
        self._fresh = asyncio.Event()
        self._newest: Picture | None = None
        self._encoding: asyncio.Task[None] | None = None

    def put(self, frame: Frame) -> bool:
        """Make a frame's view the newest one; on the pipeline's thread.

        Returns:
            Whether it was copied; nobody may be there to see it.
        """
        if frame.lying_view is None:
            raise ValueError(f"{frame!r} has no view yet")
        now_s = time.monotonic()
        if not self.watchers and now_s < self._due_s:
            return False
        self._due_s = now_s + _UNWATCHED_EVERY_S
        view = frame.view
        assert view is not None
        with self._lock:
            memory, self._waiting = self._waiting, None
            if memory is None:
                memory, self._spare = self._spare, None
            if memory is None or memory.shape != view.shape:
                memory = np.empty(view.shape, np.uint8)
            np.copyto(memory, view)
            self._waiting = memory
            self._number += 1
            self._index, self._sample_aspect = frame.index, frame.sample_aspect
            if self._loop is not None and not self._told:
                self._told = True  # one call at a time, should the loop be late
                self._loop.call_soon_threadsafe(self._tell)
        return True

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Say which event loop takes pictures; None: it ends and must not be called any more."""
        with self._lock:
            self._loop = loop

    async def after(self, number: int) -> Picture:
        """The newest picture as soon as there is one after ``number``; 0: any. On the event loop."""
        while True:
            newest = 0 if self._newest is None else self._newest.number
            if self._number > max(number, newest):
                if self._encoding is None:
                    self._encoding = asyncio.create_task(self._encode())
                await asyncio.shield(self._encoding)  # others wait for it too
            elif newest <= number:
                self._fresh.clear()
                await self._fresh.wait()
            if self._newest is not None and self._newest.number > number:
                return self._newest

    def _tell(self) -> None:
        self._told = False
        self._fresh.set()

    async def _encode(self) -> None:
        try:
            self._newest = await asyncio.get_running_loop().run_in_executor(self._executor, self._encoded)
        finally:
            self._encoding = None

    def _encoded(self) -> Picture | None:
        with self._lock:
            view, self._waiting = self._waiting, None
            number, index, sample_aspect = self._number, self._index, self._sample_aspect
        if view is None:
            return self._newest
        picture = Picture(number, index, encode(squared(view, sample_aspect)))
        with self._lock:
            self._spare = view
        return picture


def encode(view: Image) -> bytes:
    """A view, (H, W, 3) uint8 BGR, as a JPEG file of at most `LONGEST_SIDE`."""
    # Halved as long as possible: averages of 2×2 pixels are fast, and a bilinear resize would leave out most pixels.
    while max(view.shape[:2]) >= 2 * LONGEST_SIDE:
        view = _resized(view, 0.5, cv2.INTER_AREA)
    if max(view.shape[:2]) > LONGEST_SIDE:
        view = _resized(view, LONGEST_SIDE / max(view.shape[:2]), cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", view, _JPEG)[1].tobytes()


def _resized(view: Image, scale: float, interpolation: int) -> Image:
    size_wh = max(1, round(view.shape[1] * scale)), max(1, round(view.shape[0] * scale))
    return np.asarray(cv2.resize(view, size_wh, interpolation=interpolation), np.uint8)
