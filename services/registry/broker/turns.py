"""Who of those that wait for a process is next: whoever has the least of it.

A process takes some calls at a time and serves every connection. A connection may have most of them, never all,
so that a call of another one finds room however long the first one's calls take.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MANY = ""
"""Who calls for many connections at once: bounded by the process alone."""


class Turns:
    def __init__(self, size: int) -> None:
        self._size = size
        self._share = max(1, size - max(1, size // 4))
        self._in_use: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], str] = {}
        """In the order in which they came."""

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = who
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None and not turn.cancelled():
                self._leave(who)  # it was handed out in the same moment
            raise
        try:
            yield
        finally:
            self._leave(who)

    def _hand_out(self) -> None:
        while self._in_use.total() < self._size:
            may = [turn for turn, who in self._waiting.items() if not turn.done() and self._may(who)]
            if not may:
                return
            turn = min(may, key=lambda turn: self._in_use[self._waiting[turn]])
            self._in_use[self._waiting.pop(turn)] += 1
            turn.set_result(None)

    def _may(self, who: str) -> bool:
        return who == MANY or self._in_use[who] < self._share

    def _leave(self, who: str) -> None:
        self._in_use[who] -= 1
        if not self._in_use[who]:
            del self._in_use[who]
        self._hand_out()
