"""Keeps the book of statuses: gathers what is known here, tells the other replicas, and judges it all together.

    calls ─ ear ─┐                                    ┌─▶ book ─▶ StatusService
    processes ───┼─▶ own reports ─▶ all reports ─ judge ─▶ since when (database)
    database ────┘         ▲ other replicas           └─▶ alarms ─▶ notices
    mapper ── backlogs ─────────────────────────────────┘

While the database or the mapper is away, what they said last holds, and calls are judged as ever.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.unit_of_work import Store
from services.registry.connections.connection import Connection
from services.registry.connections.picture import Connections, Picture
from services.registry.health import store
from services.registry.health.alarming import Alarms
from services.registry.health.gathering import Gathering
from services.registry.health.measuring import HealthMetrics
from services.registry.health.reports import Report, latest, merged
from services.registry.health.rules import Findings, Health, Rules, Verdict, judge
from services.registry.health.status import Backlog, Queue, Status, StatusBook
from services.registry.health.store import Row

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
FIRST_SECONDS = 0.05
TELL_SECONDS = 5.0
FRESH = timedelta(seconds=30)
"""A replica that has not told anything for so long is gone."""
FIRST_CHECKS_SECONDS = 60.0
"""The first looks at connections that are new here are spread over so long."""

Backlogs = Callable[[], Awaitable[Mapping[str, Backlog]]]
Queues = Callable[[], Awaitable[Mapping[str, Queue]]]


@dataclass(slots=True)
class Known:
    """What others have said, as it was heard last."""

    rows: dict[str, Row] = field(default_factory=dict)
    reports: dict[str, list[Report]] = field(default_factory=dict)
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=dict)


class Keeper:
    """`async with` it."""

    def __init__(
        self,
        *,
        worker: Store,
        picture: Picture,
        gathering: Gathering,
        book: StatusBook,
        alarms: Alarms,
        metrics: HealthMetrics,
        backlogs: Backlogs,
        queues: Queues,
        clock: Clock,
        replica: str,
        rules: Rules | None = None,
    ) -> None:
        self._worker, self._picture, self._gathering = worker, picture, gathering
        self._book, self._alarms, self._metrics = book, alarms, metrics
        self._backlogs, self._queues = backlogs, queues
        self._clock, self._replica, self._rules = clock, replica, rules or Rules()
        self._known = Known()
        self._told: dict[str, Report] = {}
        self._all_told = datetime.min.replace(tzinfo=UTC)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep(self._judge, LOOK_SECONDS), name="judge connections"),
            asyncio.create_task(self._keep(self._exchange, TELL_SECONDS), name="tell of connections"),
            asyncio.create_task(self._keep(self._ask_mapper, TELL_SECONDS), name="ask what waits"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._book.stop_watching()
        for task in self._tasks:
            await end(task)

    async def _keep(self, step: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                await step()
            except Problem as away:
                log.debug("what is known of connections is older", why=str(away))
            except Exception:  # a task's border: what is known may be late, never gone
                log.exception("what is known of connections is older")
            await self._clock.sleep(seconds)

    async def _judge(self) -> None:
        while not self._picture.snapshot.known:
            await self._clock.sleep(FIRST_SECONDS)
        if not self._book.known:  # since when it is so was known before this process was
            async with self._worker.across_tenants() as work:
                self._known.rows = await store.rows(work)
        now = self._clock.now()
        connections = self._picture.snapshot.content
        own = self._gathering.reports(connections)
        statuses = {
            connection.name: self._status(connection, own.get(connection.name), now)
            for connection in connections.values()
        }
        turned = {
            status.name: (status.health, status.since)
            for status in statuses.values()
            if status.name in self._known.rows and self._known.rows[status.name].health is not status.health
        }
        self._book.replace(statuses)
        self._metrics.counted(status.health for status in statuses.values())
        await self._remember(turned, connections, now)
        await self._alarms.look(statuses.values(), now)

    def _status(self, connection: Connection, own: Report | None, now: datetime) -> Status:
        name, known = connection.name, self._known
        row = known.rows.get(name)
        reports = [*([own] if own is not None else []), *known.reports.get(name, ())]
        report = merged(reports) if reports else Report()
        backlog = known.backlogs.get(name, Backlog())
        lag = max(0.0, (now - backlog.oldest).total_seconds()) if backlog.oldest is not None else 0.0
        verdict = judge(connection, _findings(report, row, lag), self._rules)
        return Status(
            connection=connection,
            health=verdict.health,
            cause=verdict.cause,
            since=self._since(name, verdict, row, now),
            explanation=verdict.explanation,
            instance=Health.UNKNOWN if row is None else row.instance,
            report=report,
            last_event_time=latest([report.last_event_time, None if row is None else row.last_event_time]),
            lag=lag,
            backlog=backlog,
            queue=known.queues.get(name, Queue()),
        )

    def _since(self, name: str, verdict: Verdict, row: Row | None, now: datetime) -> datetime:
        before = self._book.statuses.get(name)
        if before is not None and before.health is verdict.health:
            return before.since
        if before is None and row is not None and row.health is verdict.health:
            return row.health_time
        return now

    async def _remember(
        self, turned: Mapping[str, tuple[Health, datetime]], connections: Connections, now: datetime
    ) -> None:
        """In the database: connections that are new here, and what turned. Read again at the next exchange."""
        new = [name for name in connections if name not in self._known.rows]
        if not new and not turned:
            return
        async with self._worker.across_tenants() as work:
            if new:
                await store.know(work, new, now, FIRST_CHECKS_SECONDS)
            if turned:
                await store.turned(work, turned)
            self._known.rows = await store.rows(work)

    async def _exchange(self) -> None:
        """What changed since it was last told; what the others say; how operations stand."""
        now = self._clock.now()
        own = self._gathering.reports(self._picture.snapshot.content)
        # What has not changed is told now and then too: else it would seem to come from somebody who is gone.
        all_of_it = now - self._all_told >= FRESH / 2
        telling = {
            name: report.encode()
            for name, report in own.items()
            if all_of_it or self._told.get(name) != report
        }
        gone = [name for name in self._told if name not in own]
        events = {
            name: report.last_event_time for name, report in own.items() if report.last_event_time is not None
        }
        async with self._worker.across_tenants() as work:
            if telling:
                await store.report(work, self._replica, telling, now)
            if gone:
                await store.withdraw(work, self._replica, gone)
            if events:
                await store.had_events(work, events)
            heard = await store.others(work, self._replica, now, FRESH)
            self._known.rows = await store.rows(work)
            self._alarms.told = await store.alarms(work)
        self._told = dict(own)
        self._all_told = now if all_of_it else self._all_told
        self._known.reports = _by_connection(heard)
        self._known.queues = await self._queues()

    async def _ask_mapper(self) -> None:
        self._known.backlogs = await self._backlogs()


def _by_connection(heard: Iterable[tuple[str, bytes]]) -> dict[str, list[Report]]:
    found: dict[str, list[Report]] = defaultdict(list)
    for name, content in heard:
        found[name].append(Report.decode(content))
    return found


def _findings(report: Report, row: Row | None, lag: float) -> Findings:
    failure = row.failure if row is not None else None
    return Findings(
        process=report.process,
        process_says=report.process_says,
        instance=Health.UNKNOWN if row is None else row.instance,
        instance_says=failure.message if failure is not None else "",
        outcomes=report.outcomes,
        traffic=report.traffic,
        last_failure=report.last_failure,
        circuits=_operations(report),
        lag=lag,
    )


def _operations(report: Report) -> list[str]:
    return sorted({one.operation for one in report.circuits})
