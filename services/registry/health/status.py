"""How every connection is, in one book: worst first, and told to whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from services.registry.connections.connection import Connection
from services.registry.health.reports import Report
from services.registry.health.rules import Cause, Health

_ORDER = {Health.DOWN: 0, Health.DEGRADED: 1, Health.UNKNOWN: 2, Health.PAUSED: 3, Health.OK: 4}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the mapper has of a connection."""

    waiting: int = 0
    oldest: datetime | None = None
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits of a connection's operations."""

    waiting: int = 0
    ambiguous: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    connection: Connection
    health: Health
    cause: Cause
    since: datetime
    explanation: str
    instance: Health
    report: Report
    last_event_time: datetime | None
    lag: float
    backlog: Backlog = field(default_factory=Backlog)
    queue: Queue = field(default_factory=Queue)

    @property
    def name(self) -> str:
        return self.connection.name

    @property
    def rank(self) -> tuple[int, str]:
        """Worst first."""
        return _ORDER[self.health], self.name

    @property
    def essence(self) -> tuple[object, ...]:
        """What has to change for watchers to be told again: not every figure that moves with each call."""
        circuits = tuple((one.operation, one.half_open) for one in self.report.circuits)
        shown = (self.explanation, self.connection.etag, self.connection.state, circuits, self.queue)
        return (self.health, self.instance, self.report.process, self.report.outcomes, *shown)


@dataclass(frozen=True, slots=True)
class News:
    """What watchers are told: those that changed, and those that are gone."""

    changed: Collection[Status]
    gone: Collection[str]


class StatusBook:
    def __init__(self) -> None:
        self.statuses: Mapping[str, Status] = {}
        self.known = False
        self._turned = asyncio.Event()
        self._open = True

    def replace(self, statuses: Mapping[str, Status]) -> None:
        self.statuses, self.known = statuses, True
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    async def until_known(self, within: float) -> bool:
        """Whether it was read at all, once that is so or the time has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self.known and self._open:
                    await self._turned.wait()
        return self.known

    def worst_first(self, tenant: str = "", only: Collection[Health] = ()) -> list[Status]:
        """Those of a tenant, or of all."""
        chosen: Iterable[Status] = self.statuses.values()
        if tenant:
            chosen = (one for one in chosen if one.connection.tenant == tenant)
        if only:
            chosen = (one for one in chosen if one.health in only)
        return sorted(chosen, key=_rank)

    async def watch(self, tenant: str) -> AsyncIterator[News]:
        """All of a tenant's at first, then what changes, until `stop_watching`."""
        told: dict[str, tuple[object, ...]] = {}
        first = True
        while self._open:
            turned = self._turned
            mine = {one.name: one for one in self.worst_first(tenant)}
            changed = [one for one in mine.values() if told.get(one.name) != one.essence]
            gone = [name for name in told if name not in mine]
            if self.known and (first or changed or gone):
                first = False
                told = {name: one.essence for name, one in mine.items()}
                yield News(changed, gone)
            await turned.wait()

    def stop_watching(self) -> None:
        """Watchers wait for changes for ever; without this word a server's drain would wait for them."""
        self._open = False
        self._turned.set()


def _rank(status: Status) -> tuple[int, str]:
    return status.rank
