"""Queries about users and memberships. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.rows import columns, every, one, run


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    id: str
    title: str
    email: str = ""
    subject: str = ""
    platform_roles: Sequence[str] = ()
    disabled: bool = False
    request_id: str = ""
    revision: int = 1
    created_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"users/{self.id}"

    @property
    def etag(self) -> str:
        return str(self.revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipRow:
    tenant: str
    user_id: str
    roles: Sequence[str]
    group_name: str = ""
    revision: int = 1

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/memberships/{self.user_id}"

    @property
    def etag(self) -> str:
        return str(self.revision)


# users


async def add_user(work: AsyncConnection, row: UserRow) -> bool:
    """False where the subject is known, or the request was made before."""
    done = await run(
        work,
        """insert into users (id, title, email, subject, platform_roles, disabled, request_id)
           values (:id, :title, :email, :subject, :platform_roles, :disabled, :request_id)
           on conflict do nothing""",
        **_user_values(row),
    )
    return done == 1


async def user(work: AsyncConnection, user: str, *, lock: str = "") -> UserRow | None:
    """`lock`: `for update` to change or remove it, `for share` for what must not outlive it."""
    return await one(work, UserRow, f"select {columns(UserRow)} from users where id = :id {lock}", id=user)


async def user_of_request(work: AsyncConnection, request_id: str) -> UserRow | None:
    return await one(
        work, UserRow, f"select {columns(UserRow)} from users where request_id = :id", id=request_id
    )


async def users(work: AsyncConnection, after: str, limit: int) -> list[UserRow]:
    return await every(
        work,
        UserRow,
        f"select {columns(UserRow)} from users where id > :after order by id limit :limit",
        after=after,
        limit=limit,
    )


async def save_user(work: AsyncConnection, row: UserRow) -> UserRow | None:
    return await one(
        work,
        UserRow,
        f"""update users set title = :title, email = :email, platform_roles = :platform_roles,
                disabled = :disabled, revision = revision + 1
            where id = :id returning {columns(UserRow)}""",
        **_user_values(row),
    )


async def remove_user(work: AsyncConnection, user: str) -> None:
    await run(work, "delete from users where id = :id", id=user)


def _user_values(row: UserRow) -> dict[str, object]:
    return asdict(row) | {"platform_roles": list(row.platform_roles)}


# memberships


async def put_membership(work: AsyncConnection, row: MembershipRow) -> MembershipRow:
    stored = await one(
        work,
        MembershipRow,
        f"""insert into memberships (tenant, user_id, roles, group_name)
            values (:tenant, :user_id, :roles, :group_name)
            on conflict (tenant, user_id) do update
            set roles = excluded.roles, group_name = excluded.group_name, revision = memberships.revision + 1
            returning {columns(MembershipRow)}""",
        **(asdict(row) | {"roles": list(row.roles)}),
    )
    assert stored is not None, "an upsert returns its row"  # noqa: S101
    return stored


async def membership(work: AsyncConnection, tenant: str, user: str) -> MembershipRow | None:
    return await one(
        work,
        MembershipRow,
        f"select {columns(MembershipRow)} from memberships where tenant = :tenant and user_id = :user",
        tenant=tenant,
        user=user,
    )


async def memberships(work: AsyncConnection, tenant: str, after: str, limit: int) -> list[MembershipRow]:
    return await every(
        work,
        MembershipRow,
        f"""select {columns(MembershipRow)} from memberships
            where tenant = :tenant and user_id > :after order by user_id limit :limit""",
        tenant=tenant,
        after=after,
        limit=limit,
    )


async def memberships_of_user(worker: AsyncConnection, user: str, *, active: bool) -> list[MembershipRow]:
    """In every tenant, or in every active one: asked across tenants, so by the worker's role."""
    return await every(
        worker,
        MembershipRow,
        f"""select {columns(MembershipRow)} from memberships
            where user_id = :user and (not :active or tenant in (select id from tenants where state = 'ACTIVE'))
            order by tenant""",
        user=user,
        active=active,
    )


async def remove_membership(work: AsyncConnection, tenant: str, user: str) -> bool:
    done = await run(
        work, "delete from memberships where tenant = :tenant and user_id = :user", tenant=tenant, user=user
    )
    return done == 1


async def remove_memberships_of_user(work: AsyncConnection, user: str) -> int:
    """In the tenants of this transaction."""
    return await run(work, "delete from memberships where user_id = :user", user=user)


async def other_admins(work: AsyncConnection, tenant: str, user: str) -> int:
    """How many besides this user can administer the tenant."""
    found = await work.execute(
        text("""
            select count(*) from memberships m join users u on u.id = m.user_id
            where m.tenant = :tenant and 'tenant-admin' = any (m.roles) and m.user_id <> :user and not u.disabled
        """),
        {"tenant": tenant, "user": user},
    )
    count: int = found.scalar_one()
    return count
