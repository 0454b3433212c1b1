"""Health, put together: what hears, what looks, what judges, what tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from foundation.telemetry import Check, Readiness
from services.registry.connections.connection import Connection
from services.registry.connections.ending import Removal
from services.registry.ground import Ground
from services.registry.health import store
from services.registry.health.alarming import Alarms
from services.registry.health.alarms import Patience
from services.registry.health.backlogs import MapperBacklogs
from services.registry.health.ear import Ear
from services.registry.health.examining import Examiner
from services.registry.health.gathering import Gathering
from services.registry.health.keeping import Keeper
from services.registry.health.platform import Platform
from services.registry.health.queues import OperationQueues
from services.registry.health.rules import Rules
from services.registry.health.seen import Seen
from services.registry.health.servicer import StatusServicer
from services.registry.health.status import StatusBook


@asynccontextmanager
async def watching(
    on: Ground, ear: Ear, removals: list[Removal], checks: Mapping[str, Check], wake: asyncio.Event
) -> AsyncIterator[StatusServicer]:
    """`checks` are of what the platform rests on, by the names of `limits.EFFECTS`; `wake` is set for each notice."""
    book, rules = StatusBook(), Rules(lag=on.settings.lag_seconds)
    patience = Patience(on.settings.alarm_seconds, on.settings.calm_seconds)
    alarms = Alarms(on.worker, on.host, ear.metrics, on.clock, wake=wake, rules=rules, patience=patience)
    keeper = Keeper(
        worker=on.worker,
        picture=on.picture,
        gathering=Gathering(ear, on.host, on.broker.calls, on.clock, rules),
        book=book,
        alarms=alarms,
        metrics=ear.metrics,
        backlogs=MapperBacklogs(on.mapper),
        queues=OperationQueues(on.worker),
        clock=on.clock,
        replica=on.replica,
        rules=rules,
    )

    async def forget(connection: Connection) -> None:
        async with on.worker.across_tenants() as work:
            await store.forget(work, connection.name)

    removals.append(forget)
    async with AsyncExitStack() as stack:
        platform = await stack.enter_async_context(Platform(Readiness(checks), on.host, on.picture, on.clock))
        await stack.enter_async_context(
            Examiner(on.worker, on.picture, on.host, on.broker, ear=ear, clock=on.clock)
        )
        await stack.enter_async_context(keeper)
        yield StatusServicer(book, platform, Seen(book, on.host.manifest))
