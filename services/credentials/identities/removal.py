"""Removes what deleted tenants had, page by page, after their keys are gone.

Nothing depends on it: what it removes cannot be opened any more. So it may be killed at any moment, run in
several replicas at once, and take as long as it takes. Which tables there are it asks the database; a table
that a later version adds is not forgotten. The audit is no such table: a chain outlives whom it is about.
"""

from __future__ import annotations

import asyncio
from typing import Self

import structlog

from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.identities.store import tenants as queries
from services.credentials.identities.store import tokens

log = structlog.get_logger(__name__)

PAGE = 500
PAUSE_SECONDS = 2.0


class Removal:
    """`async with` it: removes in the background for as long as the block lasts."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="remove what deleted tenants had")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.sweep()
            except (Problem, StoreError) as error:
                log.info("removal waits", why=str(error))
            except Exception:  # a task's border: it is tried again
                log.exception("removal failed")
            await asyncio.sleep(PAUSE_SECONDS)

    async def sweep(self) -> None:
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            waiting = await queries.to_be_removed(work)
        for tenant in waiting:
            await self._remove(tenant)

    async def _remove(self, tenant: str) -> None:
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            tables = await queries.tables_of_tenants(work)
        for table in tables:
            while await self._page(tenant, table):
                pass
        while await self._tokens(tenant):
            pass
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            if await queries.note_removed(work, tenant):
                entry = Entry(tenant=tenant, action="tenant.remove", resource=f"tenants/{tenant}")
                await self._journal.append(work, entry)

    async def _page(self, tenant: str, table: str) -> bool:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            return await queries.remove_page(work, table, tenant, PAGE) > 0

    async def _tokens(self, tenant: str) -> bool:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            return await tokens.remove_tokens_of_tenant(work, tenant, PAGE) > 0
