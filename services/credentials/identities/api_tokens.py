"""API tokens: opaque, kept as a hash, exchanged for short-lived access tokens.

What a token may do is decided when it is exchanged, not when it was made: a user's token carries what the token
was given *and* the user still holds. So whoever loses a membership, is disabled, or whose tenant is suspended
is refused at the next exchange; an access token that is out already ends with its few minutes (a user's with
its few seconds), because nobody asks us before believing it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from datetime import datetime
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.identity.names import tenant_of
from foundation.store.unit_of_work import Store
from services.credentials.identities.standing import require_active
from services.credentials.identities.store import tokens as queries
from services.credentials.identities.store import users
from services.credentials.identities.store.tokens import PLATFORM, TokenRow
from services.credentials.identities.store.users import MembershipRow, UserRow

PREFIX = "tl_"
HINT = 8


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    # Fast on purpose: what is hashed has 256 random bits, nobody guesses it.
    return hashlib.sha256(secret.encode()).digest()


class Exchange:
    """Finds out whom a token stands for. `worker` reads memberships across tenants."""

    def __init__(self, store: Store, worker: Store) -> None:
        self._store = store
        self._worker = worker

    async def authenticate(self, secret: str, now: datetime) -> tuple[Principal, bool]:
        """The principal, and whether it is a user who may be disabled.

        Unknown, expired, revoked, suspended: one answer, which does not say which.
        """
        async with self._store.unit_of_work(tenants=()) as work:
            row = await queries.token_by_hash(work, digest(secret))
            if row is None or row.revoked_at or (row.expires_at and row.expires_at <= now):
                raise _refused()
            if row.owner != PLATFORM:
                await _demand_standing(work, tenant_of(row.owner))
            user = None if row.user_id is None else await users.user(work, row.user_id)
            hour = now.replace(minute=0, second=0, microsecond=0)
            await queries.note_use(work, row.sha256, hour)
        if row.user_id is None:
            return _as_given(row), False
        if user is None or user.disabled:
            raise _refused()
        async with self._worker.across_tenants() as work:
            memberships = await users.memberships_of_user(work, user.id, active=True)
        return _of_user(row, user, memberships), True


async def _demand_standing(work: AsyncConnection, tenant: str) -> None:
    try:
        await require_active(work, tenant)
    except Problem:
        raise _refused() from None


def _as_given(row: TokenRow) -> Principal:
    if row.owner == PLATFORM:
        return _principal(row, row.roles)
    return _principal(row, (), {tenant_of(row.owner): row.roles})


def _of_user(row: TokenRow, user: UserRow, memberships: Collection[MembershipRow]) -> Principal:
    """What the token was given and the user holds. A token of the platform stands for the user everywhere."""
    held = {membership.tenant: membership.roles for membership in memberships}
    if row.owner == PLATFORM:
        return _principal(row, set(row.roles).intersection(user.platform_roles), held)
    tenant = tenant_of(row.owner)
    everywhere = Role.PLATFORM_ADMIN in user.platform_roles
    roles = row.roles if everywhere else set(row.roles).intersection(held.get(tenant, ()))
    if not roles:
        raise _refused()
    return _principal(row, (), {tenant: roles})


def _principal(
    row: TokenRow,
    platform_roles: Collection[str],
    tenant_roles: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Principal:
    return Principal(
        Kind(row.kind),
        row.principal,
        platform_roles=frozenset(map(Role, platform_roles)),
        tenant_roles=MappingProxyType(
            {tenant: frozenset(map(Role, roles)) for tenant, roles in tenant_roles.items()}
        ),
    )


def _refused() -> Problem:
    return Problem(Code.TOKEN_INVALID, why="it is unknown, ended or revoked")
