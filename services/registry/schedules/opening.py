"""Polling, as one thing that the registry opens: who sees to schedules, who polls, and who answers for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from foundation.store.unit_of_work import Store
from services.registry.connections.connection import Connection
from services.registry.connections.ending import Removal
from services.registry.ground import Ground
from services.registry.polling.checkpoints import Checkpoints
from services.registry.polling.inbox import MapperInbox
from services.registry.polling.poller import Poller
from services.registry.schedules import store
from services.registry.schedules.book import ScheduleBook
from services.registry.schedules.errands import Errands
from services.registry.schedules.gardener import Gardener
from services.registry.schedules.measuring import PollMetrics
from services.registry.schedules.scheduler import Pace, Scheduler
from services.registry.schedules.servicer import ScheduleServicer


@asynccontextmanager
async def schedules(
    ground: Ground, removals: list[Removal], pace: Pace | None = None
) -> AsyncIterator[ScheduleServicer]:
    """Poll inside the block."""

    async def forget(connection: Connection) -> None:
        await remove_schedules(ground.worker, connection.tenant, connection.id)

    removals.append(forget)
    checkpoints = Checkpoints(ground.worker, ground.clock, ground.replica)
    poller = Poller(ground.broker.fetching, MapperInbox(ground.mapper, ground.clock), checkpoints)
    errands = Errands(poller, ground.broker.fetching, ground.worker, ground.picture, ground.host)
    scheduler = Scheduler(
        ground.replica,
        ground.worker,
        ground.host,
        errands,
        clock=ground.clock,
        metrics=PollMetrics(ground.metrics.registry),
        pace=pace,
    )
    book = ScheduleBook(
        own=ground.own,
        checkpoints=checkpoints,
        picture=ground.picture,
        host=ground.host,
        recorder=ground.recorder,
        clock=ground.clock,
        due=scheduler.notice,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(scheduler)
        gardener = Gardener(ground.worker, ground.picture, ground.host, scheduler.notice)
        await stack.enter_async_context(gardener)
        yield ScheduleServicer(book)


async def remove_schedules(worker: Store, tenant: str, connection: str) -> None:
    """When a connection is deleted: its schedules, and how far they had read. Doing it again changes nothing."""
    async with worker.unit_of_work(tenants=[tenant]) as work:
        await store.remove(work, tenant, connection)
