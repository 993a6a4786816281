"""People at the page, made up: they come, watch, change settings, stop reading, and leave without a word."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from socket import SHUT_RDWR

import aiohttp

MODES = ("overlay", "mask", "side", "contour")
_STAY_S = (3.0, 25.0)
_AWAY_S = (1.0, 10.0)
_PATIENCE_S = 20.0


class Visitors:
    """All who visit a page, each again and again.

    Args:
        url: the page's, with a slash at its end.
        token: that it wants.

    Attributes:
        done: how many visits of each kind have ended as they should.
        failed: how many have not, by what was wrong.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._known = {"Authorization": f"Bearer {token}"}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    async def visit(self) -> None:
        """Until it is cancelled."""
        kinds = {
            "watch": self._watch,
            "watch and vanish": self._vanish,
            "stall": self._stall,
            "stream": self._stream,
            "settings": self._change,
            "stranger": self._knock,
        }
        await asyncio.gather(*(self._again_and_again(kind, visit) for kind, visit in kinds.items()))

    async def _again_and_again(self, kind: str, visit: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(random.uniform(*_AWAY_S))
            try:
                # A session for each: a browser that comes anew.
                timeout = aiohttp.ClientTimeout(None, sock_connect=_PATIENCE_S)
                async with aiohttp.ClientSession(timeout=timeout) as session:
                    await visit(session)
                self.done[kind] += 1
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError, AssertionError) as error:
                self.failed[f"{kind}: {type(error).__name__} {error}"[:100]] += 1

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{self._url}live", headers=self._known, max_msg_size=0) as socket:
            await self._look(socket)

    async def _vanish(self, session: aiohttp.ClientSession) -> None:
        socket = await session.ws_connect(f"{self._url}live", headers=self._known, max_msg_size=0)
        await self._look(socket)
        socket.get_extra_info("socket").shutdown(SHUT_RDWR)  # no goodbye of the WebSocket

    async def _look(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        await socket.send_json({"watch": [0, 1, 2]})
        end_s = asyncio.get_running_loop().time() + random.uniform(*_STAY_S)
        with contextlib.suppress(asyncio.TimeoutError):
            while (left_s := end_s - asyncio.get_running_loop().time()) > 0:
                message = await asyncio.wait_for(socket.receive(), left_s)
                if message.type is aiohttp.WSMsgType.BINARY:
                    await socket.send_json({"shown": message.data[0]})
                elif message.type is not aiohttp.WSMsgType.TEXT:
                    raise ConnectionError(f"the page ended the visit ({message.type.name})")

    async def _stall(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self._url}stream.mjpg", headers=self._known) as answer:
            assert answer.connection is not None
            transport = answer.connection.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            await asyncio.sleep(random.uniform(*_STAY_S))
            transport.abort()

    async def _stream(self, session: aiohttp.ClientSession) -> None:
        end_s = asyncio.get_running_loop().time() + random.uniform(*_STAY_S)
        async with session.get(f"{self._url}stream.mjpg", headers=self._known) as answer:
            assert answer.status == 200, answer.status
            while asyncio.get_running_loop().time() < end_s:
                assert await asyncio.wait_for(answer.content.readany(), _PATIENCE_S), "the stream ended"

    async def _change(self, session: aiohttp.ClientSession) -> None:
        """The page is loaded anew, and a setting is changed."""
        for path in ("", "app.js", "state", "snapshot.jpg"):
            async with session.get(f"{self._url}{path}", headers=self._known) as answer:
                assert answer.status == 200, f"{path}: {answer.status}"
                await answer.read()
        changed = {"mode": random.choice(MODES), "alpha": round(random.uniform(0.2, 0.8), 2)}
        async with session.post(f"{self._url}settings", json=changed, headers=self._known) as answer:
            assert answer.status == 200, await answer.text()

    async def _knock(self, session: aiohttp.ClientSession) -> None:
        """Somebody without the token."""
        async with session.get(f"{self._url}state") as answer:
            assert answer.status in (401, 403, 429), answer.status
