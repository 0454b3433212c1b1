"""Operations, put together: what people ask for, and who runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from services.registry.connections.ending import Removal
from services.registry.ground import Ground
from services.registry.operations.bell import Bell
from services.registry.operations.book import OperationBook
from services.registry.operations.keeping import Keeper
from services.registry.operations.measuring import OperationMetrics
from services.registry.operations.runner import Bounds, Runner
from services.registry.operations.servicer import OperationServicer
from services.registry.subscriptions.subscriber import Subscriber


@asynccontextmanager
async def operating(on: Ground, removals: list[Removal]) -> AsyncIterator[tuple[OperationServicer, Bell]]:
    bell, measured = Bell(), OperationMetrics(on.metrics.registry)
    book = OperationBook(
        own=on.own,
        manifests=on.host,
        recorder=on.recorder,
        bell=bell,
        clock=on.clock,
        metrics=measured,
    )

    subscriber = Subscriber(
        worker=on.worker,
        manifests=on.host,
        operations=book,
        bell=bell,
        picture=on.picture,
        public_url=on.settings.public_url,
        clock=on.clock,
    )
    # In this order: what is subscribed to is given up through an operation.
    removals += [subscriber.remove, book.remove]
    bounds = Bounds(lease=on.settings.operation_lease_seconds, drain=on.settings.drain_seconds)
    runner = Runner(
        on.worker,
        on.broker.executing,
        bell,
        on.clock,
        owner=on.replica,
        ready=lambda: on.picture.snapshot.known,
        bounds=bounds,
        metrics=measured,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            Keeper(on.worker, on.clock, timedelta(days=on.settings.operation_days), measured)
        )
        await stack.enter_async_context(runner)
        await stack.enter_async_context(subscriber)
        yield OperationServicer(book), bell
