"""People and what they may do where: made, changed, disabled, removed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from foundation.identity import Role
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import PLATFORM, Entry
from services.credentials.audit.journal import Journal
from services.credentials.identities.standing import require_active
from services.credentials.identities.store import tenants, tokens
from services.credentials.identities.store import users as queries
from services.credentials.identities.store.users import MembershipRow, UserRow
from services.credentials.updates import made_from

ATTEMPTS = 5


class UserBook:
    """`worker` finds a user's memberships across tenants; every change is made inside their walls."""

    def __init__(self, store: Store, worker: Store, journal: Journal) -> None:
        self._store = store
        self._worker = worker
        self._journal = journal

    async def create(self, wanted: UserRow) -> UserRow:
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            if not await queries.add_user(work, wanted):
                before = wanted.request_id and await queries.user_of_request(work, wanted.request_id)
                if not before:
                    raise Problem(Code.ALREADY_EXISTS, what="user with this subject")
                return before
            stored = await queries.user(work, wanted.id)
            await self._journal.append(work, _entry(wanted, "user.create"))
        return stored or wanted

    async def update(self, user: str, etag: str, wanted: UserRow, fields: Collection[str]) -> UserRow:
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            row = await queries.user(work, user, lock="for update")
            if row is None:
                raise _unknown(user)
            made_from(etag, row.etag, "user.etag")
            changed = replace(row, **{name: getattr(wanted, name) for name in fields})
            saved = await queries.save_user(work, changed)
            await self._journal.append(work, _entry(row, "user.update", fields))
        return saved or changed

    async def delete(self, user: str, etag: str) -> None:
        """With all of its memberships and tokens, in one commit."""
        for _ in range(ATTEMPTS):
            tenants_of_user = await self._tenants_of(user)
            if await self._delete(user, etag, tenants_of_user):
                return
        raise Problem(Code.CONFLICT, why=f"users/{user} becomes a member all the time")

    async def _delete(self, user: str, etag: str, tenants_of_user: list[str]) -> bool:
        """False where it has become a member of yet another tenant: that one's rows we would not see."""
        async with self._store.unit_of_work(tenants=[PLATFORM, *tenants_of_user]) as work:
            row = await queries.user(work, user, lock="for update")
            if row is None:
                raise _unknown(user)
            made_from(etag, row.etag, "etag")
            # Who makes a membership holds the user's row, so from here on there come no more.
            if not set(await self._tenants_of(user)) <= set(tenants_of_user):
                return False
            await queries.remove_memberships_of_user(work, user)
            await tokens.remove_tokens_of_user(work, user)
            await queries.remove_user(work, user)
            entries = [
                Entry(
                    tenant=tenant, action="membership.delete", resource=f"tenants/{tenant}/memberships/{user}"
                )
                for tenant in tenants_of_user
            ]
            await self._journal.append(work, _entry(row, "user.delete"), *entries)
        return True

    async def _tenants_of(self, user: str) -> list[str]:
        async with self._worker.across_tenants() as work:
            return [row.tenant for row in await queries.memberships_of_user(work, user, active=False)]

    async def set_membership(self, wanted: MembershipRow, etag: str) -> MembershipRow:
        async with self._store.unit_of_work(tenants=[wanted.tenant]) as work:
            # Memberships of a tenant change one after the other: two admins cannot remove each other at once.
            await tenants.tenant(work, wanted.tenant, locked=True)
            await require_active(work, wanted.tenant)
            if await queries.user(work, wanted.user_id, lock="for share") is None:
                raise _unknown(wanted.user_id)
            row = await queries.membership(work, wanted.tenant, wanted.user_id)
            if etag:
                made_from(etag, row.etag if row else "none", "membership.etag")
            if row is not None and Role.TENANT_ADMIN not in wanted.roles:
                await self._keep_an_admin(work, row)
            stored = await queries.put_membership(work, wanted)
            details = {"roles": ",".join(stored.roles)}
            entry = Entry(
                tenant=wanted.tenant, action="membership.set", resource=stored.name, details=details
            )
            await self._journal.append(work, entry)
        return stored

    async def delete_membership(self, tenant: str, user: str) -> None:
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            await tenants.tenant(work, tenant, locked=True)
            row = await queries.membership(work, tenant, user)
            if row is None:
                return
            await self._keep_an_admin(work, row)
            await queries.remove_membership(work, tenant, user)
            entry = Entry(tenant=tenant, action="membership.delete", resource=row.name)
            await self._journal.append(work, entry)

    @staticmethod
    async def _keep_an_admin(work: AsyncConnection, row: MembershipRow) -> None:
        if Role.TENANT_ADMIN in row.roles and not await queries.other_admins(work, row.tenant, row.user_id):
            why = "it is the tenant's last tenant-admin"
            raise Problem(Code.STATE_REFUSES, what=row.name, wanted="ended", why=why)


def _entry(row: UserRow, action: str, fields: Collection[str] = ()) -> Entry:
    return Entry(tenant=PLATFORM, action=action, resource=row.name, fields=sorted(fields))


def _unknown(user: str) -> Problem:
    return Problem(Code.NOT_FOUND, what=f"user {user}")
