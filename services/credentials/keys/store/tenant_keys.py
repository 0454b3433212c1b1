"""Queries about keys of tenants. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns and tables are put together

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.keys.store.copies import Copies
from services.credentials.rows import columns, every, one, run


@dataclass(frozen=True, slots=True)
class TenantKeyRow:
    version: int
    sealed: bytes | None
    sealed_other: bytes | None
    created_at: datetime

    @property
    def copies(self) -> Copies:
        return Copies(self.sealed, self.sealed_other)


async def hold_tenant_keys(work: AsyncConnection, tenant: str, *, alone: bool) -> None:
    """Who seals a value holds them; who adds or destroys a version is alone with them.

    So a value never commits under a version that was replaced meanwhile, and the wrapping anew misses none.
    """
    way = "" if alone else "_shared"
    await run(
        work,
        f"select pg_advisory_xact_lock{way}(hashtext('tieline tenant keys'), hashtext(:tenant))",
        tenant=tenant,
    )


async def add_tenant_key(work: AsyncConnection, tenant: str, version: int, sealed: bytes) -> None:
    await run(
        work,
        "insert into tenant_keys (tenant, version, sealed) values (:tenant, :version, :sealed)",
        tenant=tenant,
        version=version,
        sealed=sealed,
    )


async def tenant_key(work: AsyncConnection, tenant: str, version: int | None) -> TenantKeyRow | None:
    """That version, or the newest."""
    return await one(
        work,
        TenantKeyRow,
        f"""select {columns(TenantKeyRow)} from tenant_keys
            where tenant = :tenant and version = coalesce(cast(:version as bigint), version)
            order by version desc limit 1""",
        tenant=tenant,
        version=version,
    )


async def tenant_keys(work: AsyncConnection, tenant: str) -> list[TenantKeyRow]:
    """Newest first, destroyed ones too."""
    return await every(
        work,
        TenantKeyRow,
        f"select {columns(TenantKeyRow)} from tenant_keys where tenant = :tenant order by version desc",
        tenant=tenant,
    )


async def destroy_tenant_keys(work: AsyncConnection, tenant: str, before: int | None = None) -> int:
    """Those below a version, or all. How many there were."""
    return await run(
        work,
        """update tenant_keys set sealed = null, sealed_other = null
           where tenant = :tenant and sealed is not null
             and version < coalesce(cast(:before as bigint), version + 1)""",
        tenant=tenant,
        before=before,
    )
