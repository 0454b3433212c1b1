"""Health, put together: what hears, what looks, what judges, what tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from foundation.clock import Clock
from foundation.rpc import Connection
from foundation.store.unit_of_work import Store
from foundation.telemetry import Check, Readiness
from services.registry.broker.broker import Broker
from services.registry.connections.picture import Picture
from services.registry.health.alarming import Alarms
from services.registry.health.alarms import Patience
from services.registry.health.backlogs import MapperBacklogs
from services.registry.health.ear import Ear
from services.registry.health.examining import Examiner
from services.registry.health.gathering import Gathering
from services.registry.health.keeping import Keeper, Queues
from services.registry.health.measuring import HealthMetrics
from services.registry.health.platform import Platform
from services.registry.health.rules import Rules
from services.registry.health.servicer import StatusServicer
from services.registry.health.status import Queue, StatusBook
from services.registry.host.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What health looks at, and what it writes with."""

    worker: Store
    picture: Picture
    host: Host
    broker: Broker
    mapper: Connection
    ear: Ear
    metrics: HealthMetrics
    clock: Clock
    replica: str
    checks: Mapping[str, Check]
    """Of what the platform rests on, by the names of `limits.EFFECTS`."""
    wake: asyncio.Event
    """Set when a notice was written."""
    queues: Queues | None = None
    rules: Rules = field(default_factory=Rules)
    patience: Patience = field(default_factory=Patience)


@asynccontextmanager
async def watching(of: Surroundings) -> AsyncIterator[StatusServicer]:
    book = StatusBook()
    alarms = Alarms(
        of.worker,
        of.host,
        of.metrics,
        of.clock,
        wake=of.wake,
        rules=of.rules,
        patience=of.patience,
    )
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(
            Platform(Readiness(of.checks), of.host, of.picture, of.clock)
        )
        examiner = Examiner(of.worker, of.picture, of.host, of.broker, ear=of.ear, clock=of.clock)
        await stack.enter_async_context(examiner)
        keeper = Keeper(
            worker=of.worker,
            picture=of.picture,
            gathering=Gathering(of.ear, of.host, of.broker.calls, of.clock, of.rules),
            book=book,
            alarms=alarms,
            metrics=of.metrics,
            backlogs=MapperBacklogs(of.mapper),
            queues=of.queues or _none,
            clock=of.clock,
            replica=of.replica,
            rules=of.rules,
        )
        await stack.enter_async_context(keeper)
        yield StatusServicer(book, platform)


async def _none() -> Mapping[str, Queue]:
    return {}
