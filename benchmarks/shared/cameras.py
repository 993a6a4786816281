"""Cameras that are not well, made up: Motion JPEG over HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import cv2
import numpy as np

_BOUNDARY = "part"
_PICTURES = 16
_HEAD = (
    f"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary={_BOUNDARY}\r\nConnection: close\r\n\r\n"
    f"--{_BOUNDARY}\r\n"
)


@dataclass(frozen=True, slots=True)
class Habits:
    """What a camera does.

    Attributes:
        fps: pictures per second.
        sizes_wh: width and height of its pictures, by turns.
        size_s: how long each size lasts.
        drop_s: it ends each connection after so many seconds; None: never.
    """

    fps: float
    sizes_wh: tuple[tuple[int, int], ...]
    size_s: float = 7.0
    drop_s: float | None = None


class Camera:
    """Serves its pictures to everyone who connects, from the event loop in which ``open`` was called."""

    def __init__(self, name: str, habits: Habits) -> None:
        self._name = name
        self._habits = habits
        self._parts = {size_wh: _parts(size_wh) for size_wh in habits.sizes_wh}
        self._server: asyncio.Server | None = None

    async def open(self) -> str:
        """Begin to serve; gives the address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/{self._name}"

    def close(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        habits, loop = self._habits, asyncio.get_running_loop()
        # Nobody waits for this task, and asyncio would report its end with the event loop as a fault.
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_HEAD.encode())
            start_s = loop.time()
            number = 0
            while habits.drop_s is None or loop.time() - start_s < habits.drop_s:
                turn = int(loop.time() / habits.size_s) % len(habits.sizes_wh)
                parts = self._parts[habits.sizes_wh[turn]]
                writer.write(parts[number % len(parts)])
                await writer.drain()
                number += 1
                await asyncio.sleep(max(0.0, start_s + number / habits.fps - loop.time()))
        writer.transport.abort()  # as a camera whose power is gone, without a goodbye


def _parts(size_wh: tuple[int, int]) -> list[bytes]:
    """Pictures of a disc that moves over a gradient."""
    width, height = size_wh
    ground = np.zeros((height, width, 3), np.uint8)
    ground[..., 0] = np.linspace(0, 200, width).astype(np.uint8)
    ground[..., 1] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    parts = []
    for index in range(_PICTURES):
        picture = cv2.circle(ground.copy(), (index * width // _PICTURES, height // 2), height // 4, (20, 20, 250), -1)
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        parts.append(head.encode() + jpeg + f"\r\n--{_BOUNDARY}\r\n".encode())
    return parts
