"""Queries about tenants. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns and tables are put together

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.store.identifiers import plain
from services.credentials.rows import columns, every, one, parameters, run


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    id: str
    title: str
    state: str = "ACTIVE"
    """As the contract's Tenant.State, without its prefix."""
    reason: str = ""
    """Why it is suspended."""
    labels: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""
    """The directory it comes from; empty: made here."""
    directory_id: str = ""
    request_id: str = ""
    revision: int = 1
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.id}"

    @property
    def etag(self) -> str:
        return str(self.revision)


async def add_tenant(work: AsyncConnection, row: TenantRow) -> bool:
    """False where the id is in use, by a deleted tenant too."""
    done = await run(
        work,
        """insert into tenants (id, title, state, labels, directory, directory_id, request_id)
           values (:id, :title, :state, cast(:labels as json), :directory, :directory_id, :request_id)
           on conflict do nothing""",
        **parameters(row),
    )
    return done == 1


async def tenant(work: AsyncConnection, tenant: str, *, locked: bool = False) -> TenantRow | None:
    """`locked`: until this transaction ends nobody else changes it or what hangs on it."""
    return await one(
        work,
        TenantRow,
        f"select {columns(TenantRow)} from tenants where id = :id {'for no key update' if locked else ''}",
        id=tenant,
    )


async def tenants(work: AsyncConnection, after: str, limit: int, *, deleted: bool) -> list[TenantRow]:
    return await every(
        work,
        TenantRow,
        f"""select {columns(TenantRow)} from tenants
            where id > :after and (:deleted or state <> 'DELETED') order by id limit :limit""",
        after=after,
        limit=limit,
        deleted=deleted,
    )


async def living(work: AsyncConnection) -> list[TenantRow]:
    return await every(
        work, TenantRow, f"select {columns(TenantRow)} from tenants where state <> 'DELETED' order by id"
    )


async def of_directory(work: AsyncConnection, directory: str) -> list[TenantRow]:
    return await every(
        work,
        TenantRow,
        f"select {columns(TenantRow)} from tenants where directory = :directory order by id",
        directory=directory,
    )


async def save(work: AsyncConnection, row: TenantRow) -> TenantRow | None:
    """What may change about a tenant that was read, locked, in this transaction."""
    return await one(
        work,
        TenantRow,
        f"""update tenants set title = :title, state = :state, reason = :reason, labels = cast(:labels as json),
                directory_id = :directory_id, revision = revision + 1, updated_at = now()
            where id = :id returning {columns(TenantRow)}""",
        **parameters(row),
    )


# that something has changed


async def turn(work: AsyncConnection) -> None:
    """Watchers look at one number; transactions that change a tenant wait for each other at it."""
    await run(work, "update tenant_turns set generation = generation + 1")


async def generation(work: AsyncConnection) -> int:
    found: int = (await work.execute(text("select generation from tenant_turns"))).scalar_one()
    return found


# what is left of a deleted tenant


async def to_be_removed(work: AsyncConnection) -> list[str]:
    rows = await work.execute(
        text("select id from tenants where state = 'DELETED' and removed_at is null order by id")
    )
    return [row.id for row in rows]


async def tables_of_tenants(work: AsyncConnection) -> list[str]:
    """Every table whose rows belong to tenants and may be removed with them. The audit never, nor its keys' graves."""
    rows = await work.execute(
        text("""
            select c.relname from pg_class c
            join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant' and not a.attisdropped
            where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
              and has_table_privilege(c.oid, 'delete') and c.relname not like 'audit\\_%'
            order by c.relname
        """)
    )
    return [row.relname for row in rows]


async def remove_page(work: AsyncConnection, table: str, tenant: str, limit: int) -> int:
    """How many rows went."""
    name = plain(table)
    return await run(
        work,
        f"""delete from {name} where tenant = :tenant and ctid = any (array(
                select ctid from {name} where tenant = :tenant limit :limit))""",
        tenant=tenant,
        limit=limit,
    )


async def note_removed(work: AsyncConnection, tenant: str) -> bool:
    """False where somebody has said so already."""
    done = await run(
        work, "update tenants set removed_at = now() where id = :id and removed_at is null", id=tenant
    )
    return done == 1
