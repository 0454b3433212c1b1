"""Refreshes that nobody is at any more: their process died, or the provider's answer was lost."""

from __future__ import annotations

import asyncio
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.renewal import store as queries
from services.credentials.renewal.claims import Want
from services.credentials.renewal.renewals import Renewing

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
AT_ONCE = 50


class Recovery:
    """`async with` it: every replica looks; the claim makes sure that one of them acts."""

    def __init__(self, worker: Store, renewals: Renewing, clock: Clock) -> None:
        self._worker = worker
        self._renewals = renewals
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="carry on refreshes")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except (Problem, StoreError) as error:
                log.debug("refreshes are carried on later", error=str(error))
            except Exception:  # a task's border: the next look must come
                log.exception("refreshes are carried on later")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        async with self._worker.across_tenants() as work:
            rows = await queries.unfinished(work, self._clock.now(), AT_ONCE)
        for row in rows:
            await self._renewals.carry_on(Want(row.tenant, row.credential, row.account))
