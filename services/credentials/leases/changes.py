"""What holders are told: that a version was replaced, or a lease revoked or given back, in whatever replica.

Each of these moves one number in the database, in the transaction that does it. A look at that number, twice a
second, is all that it costs while nothing happens. New leases do not move it: their holder knows of them. A
message may therefore be older than a lease that its reader has just acquired; who misses one acquires again,
and gets the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from foundation.store.watched import Snapshot, Watched
from services.credentials.audit import store as audit
from services.credentials.leases import store as queries
from services.credentials.leases.store import Client, LeaseRow

LOOK_SECONDS = 0.5
TIDY_SECONDS = 600.0


class Changes(Watched[None]):
    """`async with` it; `stop_watching` ends all watches. The store is a worker's: leases of all tenants."""

    def __init__(self, worker: Store, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._tidied_at = float("-inf")
        super().__init__("leases", self._number, None, look_seconds=LOOK_SECONDS)

    async def tell(self, client: Client) -> AsyncIterator[tuple[int, list[LeaseRow]]]:
        """The leases of a client now, and again after each change that concerns it."""
        told = None
        async for _ in self.watch():
            async with self._worker.across_tenants() as work:
                # The number first: what changes in between is told now and again with the next number.
                generation = await queries.generation(work)
                rows = await queries.held(work, client)
            if rows != told:
                told = rows
                yield generation, rows

    async def check(self) -> None:
        """For readiness: holders that cannot be told of a revocation should ask another replica."""
        if not self.snapshot.known:
            why = "the leases are not read yet"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the leases", why=why)

    async def _number(self, known: int) -> Snapshot[None] | None:
        async with self._worker.across_tenants() as work:
            generation = await queries.generation(work)
        await self._tidy()
        return None if generation == known else Snapshot(generation, None)

    async def _tidy(self) -> None:
        """What nobody asks for any more: leases long over, requests that were answered more than a day ago."""
        now = self._clock.monotonic()
        if now < self._tidied_at + TIDY_SECONDS:
            return
        async with self._worker.across_tenants() as work:
            await queries.forget_ended(work)
            await audit.forget_requests(work)
        self._tidied_at = now
