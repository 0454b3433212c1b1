"""How far each part of a stream was read. Whoever claimed it last may say so, and nobody else.

A claim is a number that grows. The store compares it in the statement that writes, so a poller that was taken
over from cannot move a checkpoint, however late it notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from foundation.clock import Clock
from foundation.identity.names import tenant_of
from foundation.store.unit_of_work import Store
from services.registry.polling import store
from tieline.plugin.v1.fetch_pb2 import Checkpoint


class TakenOver(Exception):  # noqa: N818 - a state, not a fault
    """Another poller has claimed it meanwhile."""


@dataclass(frozen=True, slots=True)
class Place:
    """One part of a stream of a connection."""

    connection: str
    stream: str
    partition: str = ""
    reader: str = ""
    """Who of several reads it, each with checkpoints of its own; empty: its schedule, else a backfill."""

    @property
    def tenant(self) -> str:
        return tenant_of(self.connection)

    @property
    def row(self) -> dict[str, str]:
        return {
            "tenant": self.tenant,
            "connection": self.connection,
            # No stream's name has an @ in it.
            "stream": f"{self.stream}@{self.reader}" if self.reader else self.stream,
            "partition": self.partition,
        }


@dataclass(frozen=True, slots=True)
class Claim:
    place: Place
    epoch: int
    checkpoint: Checkpoint
    """Where to go on, as it was when it was claimed."""
    start_time: datetime | None = None
    """Without a cursor: where to begin, if not at the stream's default lookback."""
    last_time: datetime | None = None
    """When the newest of what was read happened, as far as known."""


class Checkpoints:
    def __init__(self, worker: Store, clock: Clock, owner: str) -> None:
        self._worker, self._clock, self._owner = worker, clock, owner

    async def claim(self, place: Place) -> Claim:
        """From now on nobody who claimed it before can move it."""
        async with self._worker.unit_of_work(tenants=[place.tenant]) as work:
            row = await store.claim(work, place.row, self._owner, self._clock.now())
        checkpoint = Checkpoint(cursor=row.cursor, cursor_version=row.cursor_version)
        return Claim(place, row.epoch, checkpoint, row.start_time, row.last_record_time or row.store_time)

    async def store(self, claim: Claim, checkpoint: Checkpoint, newest: datetime | None = None) -> None:
        """Only after everything it covers is durable. TakenOver if that is no longer ours to say."""
        told = store.Reached(checkpoint, newest=newest)
        async with self._worker.unit_of_work(tenants=[claim.place.tenant]) as work:
            kept = await store.keep(work, claim.place.row, claim.epoch, told, self._clock.now())
        if not kept:
            raise TakenOver

    async def forget(self, claim: Claim, start_time: datetime | None = None) -> None:
        """Begin again, there or at the default lookback; what comes twice is recognised where it is accepted."""
        told = store.Reached(Checkpoint(), start_time=start_time)
        async with self._worker.unit_of_work(tenants=[claim.place.tenant]) as work:
            kept = await store.keep(work, claim.place.row, claim.epoch, told, self._clock.now())
        if not kept:
            raise TakenOver
