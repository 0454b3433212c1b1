"""From one version of a tenant's key to the next, while everything goes on.

A new version seals whatever is written from its commit on. The data keys of what was there are wrapped anew in
the background, a page a transaction: 32 bytes each, no value is opened. A page is locked only against other
writers, and passed over by other replicas; leases read on. That a tenant's keys are being wrapped anew stands
in `rewraps` until nothing is under an older version, so whoever is alive goes on after a kill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.keys.store import data_keys as queries
from services.credentials.keys.store import tenant_keys
from services.credentials.keys.store.data_keys import DataKeyRow
from services.credentials.keys.store.tenant_keys import TenantKeyRow
from services.credentials.keys.vault import Holding, Vault
from services.credentials.updates import made_from

log = structlog.get_logger(__name__)

PAGE = 200
LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """The versions of a tenant's key, newest first, and what hangs on them."""

    tenant: str
    versions: Sequence[TenantKeyRow]
    data_keys: Mapping[int, int]
    """How many each version wraps."""
    since: datetime | None
    """When the rotation that is under way began."""

    @property
    def newest(self) -> int:
        return self.versions[0].version

    @property
    def etag(self) -> str:
        destroyed = sum(row.sealed is None for row in self.versions)
        return f"{self.newest}.{destroyed}"

    @property
    def total(self) -> int:
        return sum(self.data_keys.values())


class KeyRotation:
    """`async with` it: what was begun is carried on in the background."""

    def __init__(
        self, store: Store, worker: Store, vault: Vault, journal: Journal, *, page: int = PAGE
    ) -> None:
        self._page_size = page
        self._store = store
        self._worker = worker
        self._vault = vault
        self._journal = journal
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def read(self, tenant: str) -> TenantKeys:
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await _read(work, tenant)

    async def rotate(self, tenant: str, etag: str) -> TenantKeys:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            await tenant_keys.hold_tenant_keys(work, tenant, alone=True)
            keys = await _read(work, tenant)
            made_from(etag, keys.etag, "etag")
            if keys.versions[0].sealed is None:
                raise _refuses(tenant, "rotated", "it is destroyed")
            await self._vault.give_key(work, tenant, keys.newest + 1)
            await queries.begin_rewrap(work, tenant)
            keys = await _read(work, tenant)
            await self._journal.append(work, _entry(tenant, "key.rotate", version=keys.newest))
        self._wanted.set()
        return keys

    async def retire(self, tenant: str, before: int) -> TenantKeys:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            await tenant_keys.hold_tenant_keys(work, tenant, alone=True)
            keys = await _read(work, tenant)
            if not 0 < before <= keys.newest:
                why = f"it is between 1 and the current version, {keys.newest}"
                raise Problem(Code.INVALID_ARGUMENT, field="before_version", why=why)
            used = sum(count for version, count in keys.data_keys.items() if version < before)
            if used:
                why = f"{used} data keys are still under versions before {before}"
                raise _refuses(tenant, "retired", why)
            if any(row.version < before and row.sealed for row in keys.versions):
                await self._vault.destroy_keys(work, tenant, before)
                keys = await _read(work, tenant)
                await self._journal.append(work, _entry(tenant, "key.retire", before=before))
        return keys

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="wrap data keys anew")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.carry_on()
            except (Problem, StoreError) as error:
                log.info("wrapping anew waits", why=str(error))
            except Exception:  # a task's border: it is tried again
                log.exception("wrapping anew failed")
            await woken(self._wanted, LOOK_SECONDS)

    async def carry_on(self) -> None:
        """One pass over every tenant whose rotation is not finished."""
        async with self._worker.across_tenants() as work:
            under_way = await queries.rewraps(work)
        for row in under_way:
            await self._pass(row.tenant)

    async def _pass(self, tenant: str) -> None:
        after: tuple[str, int] | None = ("", 0)
        while after is not None:
            after = await self._page(tenant, after)
        await self._finish(tenant)

    async def _page(self, tenant: str, after: tuple[str, int]) -> tuple[str, int] | None:
        """Where the next page begins; None after the last one."""
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            newest = await tenant_keys.tenant_key(work, tenant, None)
            if newest is None or newest.sealed is None:
                return None
            rows = await queries.data_keys_below(work, tenant, newest.version, after, self._page_size)
            versions = {newest.version, *(row.key_version for row in rows)}
            keys = await self._vault.rewrapping(work, tenant, versions)
            anew: list[DataKeyRow] = []
            for row in rows:
                what = Holding(tenant, row.credential, row.version)
                try:
                    wrapped = keys.rewrap(what, row.wrapped_key, row.key_version, newest.version)
                except Problem as problem:
                    # It opened under no key before either. It is left as it is, and the old version with it.
                    log.warning("a data key does not open", what=str(what), why=problem.sentence)
                else:
                    anew.append(replace(row, wrapped_key=wrapped))
            await queries.put_data_keys(work, tenant, newest.version, anew)
        return (rows[-1].credential, rows[-1].version) if rows else None

    async def _finish(self, tenant: str) -> None:
        """Say so once nothing is under an older version; what another replica holds is seen in the next pass."""
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            keys = await _read(work, tenant)
            if keys.total == keys.data_keys.get(keys.newest, 0) and await queries.end_rewrap(work, tenant):
                await self._journal.append(work, _entry(tenant, "key.rewrap", version=keys.newest))


async def _read(work: AsyncConnection, tenant: str) -> TenantKeys:
    versions = await tenant_keys.tenant_keys(work, tenant)
    if not versions:
        raise Problem(Code.NOT_FOUND, what=f"key of tenant {tenant}")
    under_way = await queries.rewrap(work, tenant)
    since = under_way.started_at if under_way else None
    return TenantKeys(tenant, versions, await queries.data_keys(work, tenant), since)


def _refuses(tenant: str, wanted: str, why: str) -> Problem:
    return Problem(Code.STATE_REFUSES, what=f"tenants/{tenant}/key", wanted=wanted, why=why)


def _entry(tenant: str, action: str, **details: int) -> Entry:
    named = {name: str(value) for name, value in details.items()}
    return Entry(tenant=tenant, action=action, resource=f"tenants/{tenant}/key", details=named)
