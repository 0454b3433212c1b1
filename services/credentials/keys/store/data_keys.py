"""Queries about data keys and their being wrapped anew. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns and tables are put together

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.rows import columns, every, one, run


@dataclass(frozen=True, slots=True)
class DataKeyRow:
    credential: str
    version: int
    wrapped_key: bytes
    key_version: int


@dataclass(frozen=True, slots=True)
class UseRow:
    key_version: int
    data_keys: int


@dataclass(frozen=True, slots=True)
class RewrapRow:
    tenant: str
    started_at: datetime


async def data_keys(work: AsyncConnection, tenant: str) -> dict[int, int]:
    """How many data keys each version of the tenant's key wraps."""
    rows = await every(
        work,
        UseRow,
        """select key_version, count(*) as data_keys from credential_versions
           where tenant = :tenant and wrapped_key is not null group by key_version""",
        tenant=tenant,
    )
    return {row.key_version: row.data_keys for row in rows}


async def data_keys_below(
    work: AsyncConnection, tenant: str, version: int, after: tuple[str, int], limit: int
) -> list[DataKeyRow]:
    """A page in the order of its key, for this transaction alone; what another one holds is passed over."""
    return await every(
        work,
        DataKeyRow,
        f"""select {columns(DataKeyRow)} from credential_versions
            where tenant = :tenant and key_version < :newest and wrapped_key is not null
              and (credential, version) > (:credential, :version)
            order by credential, version limit :limit for update skip locked""",
        tenant=tenant,
        newest=version,
        credential=after[0],
        version=after[1],
        limit=limit,
    )


async def put_data_keys(
    work: AsyncConnection, tenant: str, key_version: int, rows: Sequence[DataKeyRow]
) -> None:
    await run(
        work,
        """update credential_versions v set wrapped_key = n.wrapped_key, key_version = :key_version
           from unnest(cast(:credentials as text[]), cast(:versions as bigint[]), cast(:wrapped as bytea[]))
               as n (credential, version, wrapped_key)
           where v.tenant = :tenant and v.credential = n.credential and v.version = n.version""",
        tenant=tenant,
        key_version=key_version,
        credentials=[row.credential for row in rows],
        versions=[row.version for row in rows],
        wrapped=[row.wrapped_key for row in rows],
    )


async def begin_rewrap(work: AsyncConnection, tenant: str) -> None:
    await run(work, "insert into rewraps (tenant) values (:tenant) on conflict do nothing", tenant=tenant)


async def rewrap(work: AsyncConnection, tenant: str) -> RewrapRow | None:
    return await one(
        work, RewrapRow, "select tenant, started_at from rewraps where tenant = :tenant", tenant=tenant
    )


async def rewraps(worker: AsyncConnection) -> list[RewrapRow]:
    """Of every tenant, by the worker's role."""
    return await every(worker, RewrapRow, "select tenant, started_at from rewraps order by started_at")


async def end_rewrap(work: AsyncConnection, tenant: str) -> bool:
    """False where somebody has done so already."""
    return await run(work, "delete from rewraps where tenant = :tenant", tenant=tenant) == 1
