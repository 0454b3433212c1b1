"""What goes on beside the running of operations: counting them, letting keys go, removing what ended long ago."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.unit_of_work import Store
from services.registry.operations import queue
from services.registry.operations.book import KEPT
from services.registry.operations.measuring import OperationMetrics

log = structlog.get_logger(__name__)

LOOK_SECONDS = 15.0
AT_ONCE = 1000


class Keeper:
    """`async with` it. Every replica has one; what two of them remove is removed once."""

    def __init__(
        self, worker: Store, clock: Clock, kept: timedelta, metrics: OperationMetrics | None = None
    ) -> None:
        self._worker, self._clock, self._kept, self._metrics = worker, clock, kept, metrics
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="keep operations")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def look(self) -> None:
        now = self._clock.now()
        while True:
            async with self._worker.across_tenants() as work:
                forgotten = await queue.forget_keys(work, now - KEPT, AT_ONCE)
                removed = await queue.remove(work, now - self._kept, AT_ONCE)
            if max(forgotten, removed) < AT_ONCE:
                break
        if self._metrics is None:
            return
        async with self._worker.across_tenants() as work:
            rows = await queue.counts(work)
        oldest = min((row.oldest for row in rows if row.oldest is not None), default=now)
        age = max(0.0, (now - oldest).total_seconds())
        self._metrics.counted({row.state: row.n for row in rows}, age)

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except Problem as away:
                log.debug("operations are counted later", why=str(away))
            except Exception:  # a task's border
                log.exception("operations are counted later")
            await asyncio.sleep(LOOK_SECONDS)
