"""How much a connection may ask of its provider, where somebody has said so.

In any minute no more than was said: a tenth of it at once, the rest evenly. Replicas share it evenly too, as far
as they know of each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from foundation.clock import Clock
from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from services.registry.broker.serving import Pace, Served

MINUTE = 60.0
MOST = 10_000


@dataclass(slots=True)
class _Kept:
    pace: Pace
    free_at: float
    """When the calls that were let through will have been worked off at the even rate."""
    room: asyncio.Semaphore


class Paces:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self.replicas = 1
        """Who shares the calls of a minute."""

    def shared_by(self, replicas: int) -> None:
        self.replicas = max(1, replicas)

    def take(self, served: Served) -> float:
        """0: go, and it is counted. Else in how many seconds to ask again."""
        each = served.pace.calls_per_minute / self.replicas
        if not each:
            return 0.0
        kept, now = self._of(served), self._clock.monotonic()
        burst = max(1.0, each / 10)
        gap = MINUTE / max(each - burst, each / 2)
        start = max(kept.free_at, now)
        waits = start - now - (burst - 1) * gap
        # Below one call a minute the first is let through as well, and the next waits for its time.
        if waits > 1e-9:
            return waits
        kept.free_at = start + gap
        return 0.0

    @asynccontextmanager
    async def room(self, served: Served, within: float) -> AsyncIterator[None]:
        """One of as many calls as it may make at a time; CallFailed where there is no room in time."""
        if not served.pace.concurrency:
            yield
            return
        room = self._of(served).room
        try:
            async with asyncio.timeout(within):
                await room.acquire()
        except TimeoutError:
            why = f"{served.connection} may make {served.pace.concurrency} call(s) at a time, and makes them"
            raise CallFailed(failures.untouched(failures.transient("CONNECTION_BUSY", why))) from None
        try:
            yield
        finally:
            room.release()

    def _of(self, served: Served) -> _Kept:
        kept = self._kept.get(served.connection)
        if kept is None or kept.pace != served.pace:
            self._forget()
            free_at = self._clock.monotonic() if kept is None else kept.free_at
            kept = _Kept(served.pace, free_at, asyncio.Semaphore(served.pace.concurrency or 1))
            self._kept[served.connection] = kept
        return kept

    def _forget(self) -> None:
        """Whoever has nothing to remember."""
        if len(self._kept) >= MOST:
            now = self._clock.monotonic()
            self._kept = {
                name: one for name, one in self._kept.items() if one.free_at > now or one.room.locked()
            }
