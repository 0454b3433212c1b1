"""How many calls a process takes at a time, and how one call gets it for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Capacity:
    """Waiting callers come in the order in which they asked; whoever wants all of it waits like anybody else."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._alone = asyncio.Lock()
        self.in_use = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Room for one call, beside others."""
        async with self._taken(1):
            yield

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Room for one call and nobody beside it."""
        # One at a time: two that held a part each would wait for one another for ever.
        async with self._alone, self._taken(self._size):
            yield

    @asynccontextmanager
    async def _taken(self, room: int) -> AsyncIterator[None]:
        taken = 0
        try:
            for _ in range(room):
                await self._free.acquire()
                taken += 1
            self.in_use += 1
            try:
                yield
            finally:
                self.in_use -= 1
        finally:
            for _ in range(taken):
                self._free.release()
