"""Connections that have not yet brought a request that is let in: few, for a short time, and never in the way of others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from aiohttp.web_protocol import RequestHandler


class Newcomers:
    """Gives each new connection a place, the longest silent one's where all are taken. On the event loop.

    Who refuses newcomers when there are too many is locked out by whoever makes many connections and says nothing. Here such a
    stranger pushes out himself: a request that is let in needs a few milliseconds.

    Args:
        most: how many there may be.
        within_s: after this time one is closed.
    """

    def __init__(self, most: int, within_s: float) -> None:
        self._most, self._within_s = most, within_s
        self._waiting: OrderedDict[RequestHandler, asyncio.TimerHandle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: RequestHandler) -> None:
        """Take one that is being made."""
        timer = asyncio.get_running_loop().call_later(self._within_s, self._close, connection)
        self._waiting[connection] = timer
        if len(self._waiting) > self._most:
            self._close(next(iter(self._waiting)))

    def let_in(self, connection: asyncio.BaseProtocol) -> None:
        """A request of it was let in: it is no newcomer any more."""
        if isinstance(connection, RequestHandler) and (timer := self._waiting.pop(connection, None)):
            timer.cancel()

    def _close(self, connection: RequestHandler) -> None:
        self.let_in(connection)
        if connection.transport is not None:
            connection.transport.abort()
