"""The life of a tenant: made, changed, suspended, resumed, deleted. For requests and for a directory alike.

Every change locks the tenant's row, raises the number that watchers look at, and is written into the tenant's
chain, all in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.identities.store import tenants as queries
from services.credentials.identities.store.tenants import TenantRow
from services.credentials.keys.vault import Vault
from services.credentials.leases import store as leases


class TenantBook:
    def __init__(self, vault: Vault, journal: Journal) -> None:
        self._vault = vault
        self._journal = journal

    async def create(self, work: AsyncConnection, row: TenantRow) -> bool:
        """With its first key. False where the id is in use."""
        if not await queries.add_tenant(work, row):
            return False
        await self._vault.give_key(work, row.id)
        await queries.turn(work)
        await self._journal.append(work, Entry(tenant=row.id, action="tenant.create", resource=row.name))
        return True

    async def locked(self, work: AsyncConnection, tenant: str) -> TenantRow:
        """As it is, and as it stays until this transaction ends."""
        row = await queries.tenant(work, tenant, locked=True)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"tenant {tenant}")
        return row

    async def update(self, work: AsyncConnection, row: TenantRow, fields: Collection[str]) -> TenantRow:
        if row.state == "DELETED":
            raise _refuses(row, "changed", "it is deleted")
        return await self._save(work, row, "tenant.update", fields)

    async def suspend(self, work: AsyncConnection, row: TenantRow, reason: str) -> TenantRow:
        """Nothing is served for it from this commit on; access tokens that it holds end with their few minutes."""
        if row.state == "DELETED":
            raise _refuses(row, "suspended", "it is deleted")
        if row.state == "SUSPENDED":
            return row
        await leases.revoke_of_tenant(work, row.id)
        return await self._save(work, replace(row, state="SUSPENDED", reason=reason), "tenant.suspend")

    async def resume(self, work: AsyncConnection, row: TenantRow) -> TenantRow:
        if row.state == "DELETED":
            raise _refuses(row, "resumed", "it is deleted")
        if row.state == "ACTIVE":
            return row
        return await self._save(work, replace(row, state="ACTIVE", reason=""), "tenant.resume")

    async def delete(self, work: AsyncConnection, row: TenantRow) -> TenantRow:
        """Crypto-shredding: with this commit no secret of it can be opened again, by any replica.

        What it had is removed later, by `Removal`; the audit stays, and the id is never given out again. A backup
        of the whole database from before holds its sealed keys too: it is shredded with the root key of its time.
        """
        if row.state == "DELETED":
            return row
        await self._vault.destroy_keys(work, row.id)
        await leases.revoke_of_tenant(work, row.id)
        return await self._save(work, replace(row, state="DELETED", reason=""), "tenant.delete")

    async def _save(
        self, work: AsyncConnection, row: TenantRow, action: str, fields: Collection[str] = ()
    ) -> TenantRow:
        saved = await queries.save(work, row)
        if saved is None:
            raise Problem(Code.NOT_FOUND, what=f"tenant {row.id}")
        await queries.turn(work)
        entry = Entry(tenant=row.id, action=action, resource=row.name, fields=sorted(fields))
        await self._journal.append(work, entry)
        return saved


def _refuses(row: TenantRow, wanted: str, why: str) -> Problem:
    return Problem(Code.STATE_REFUSES, what=row.name, wanted=wanted, why=why)
