"""Giving API tokens out, and taking them back: for whom, with which roles, until when."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock, Ids
from foundation.errors import Code, Problem
from foundation.identity import Kind, Role
from foundation.identity.names import parse
from foundation.rpc.call import caller
from foundation.rpc.times import moment
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import PLATFORM as PLATFORM_CHAIN
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.identities.api_tokens import HINT, digest, new_secret
from services.credentials.identities.roles import OF_PEOPLE, OF_TENANTS, read_roles
from services.credentials.identities.standing import require_active
from services.credentials.identities.store import tokens as queries
from services.credentials.identities.store import users
from services.credentials.identities.store.tokens import PLATFORM, TokenRow
from services.credentials.identities.store.users import UserRow
from tieline.credentials.v1.tokens_pb2 import ApiToken

DEFAULT_LIFE = timedelta(days=90)


class Issuing:
    def __init__(self, store: Store, journal: Journal, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._ids = ids

    async def for_tenant(self, tenant: str, wanted: ApiToken) -> tuple[TokenRow, str]:
        """The token and its secret. Nobody gives a role it does not hold; a platform-admin gives any of a tenant's."""
        roles = _some(read_roles(wanted.roles, OF_TENANTS, "api_token.roles"))
        held = caller().roles_in(tenant)
        if Role.PLATFORM_ADMIN not in held:
            _demand_held(roles, held)
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            await require_active(work, tenant)
            user = await self._user(work, wanted.principal)
            if user is not None and Role.PLATFORM_ADMIN not in user.platform_roles:
                membership = await users.membership(work, tenant, user.id)
                _demand_held(roles, membership.roles if membership else (), user.name)
            return await self._issue(work, wanted, roles, user, tenant)

    async def for_platform(self, wanted: ApiToken) -> tuple[TokenRow, str]:
        """With roles everywhere, or for a user with none of those: then it carries the user's memberships."""
        roles = read_roles(wanted.roles, OF_PEOPLE, "api_token.roles")
        async with self._store.unit_of_work(tenants=[PLATFORM_CHAIN]) as work:
            user = await self._user(work, wanted.principal)
            if user is None:
                _some(roles)
            else:
                _demand_held(roles, user.platform_roles, user.name)
            return await self._issue(work, wanted, roles, user)

    async def revoke(self, token: str, tenant: str = PLATFORM_CHAIN) -> TokenRow:
        owner = f"tenants/{tenant}" if tenant else PLATFORM
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            ended = await queries.revoke_token(work, owner, token)
            row = await queries.token(work, owner, token)
            if row is None:
                whose = "the platform" if owner == PLATFORM else owner
                raise Problem(Code.NOT_FOUND, what=f"token {token} of {whose}")
            if ended:
                entry = Entry(tenant=tenant, action="token.revoke", resource=row.name)
                await self._journal.append(work, entry)
        return row

    async def _user(self, work: AsyncConnection, principal: str) -> UserRow | None:
        """The user that a token is to stand for, held until this transaction ends.

        None only for the caller itself where it is somebody the installation was born with: anybody else whom
        we do not know could never be disabled.
        """
        name = principal or caller().name
        if not name.startswith("users/") and principal:
            why = "a token that is given out stands for a user; a process is born with its own"
            raise Problem(Code.INVALID_ARGUMENT, field="api_token.principal", why=why)
        if name == caller().name and await queries.is_born(work, name):
            return None
        (user,) = parse("users/*", name, "api_token.principal")
        row = await users.user(work, user, lock="for share")
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"user {user}")
        return row

    async def _issue(
        self,
        work: AsyncConnection,
        wanted: ApiToken,
        roles: list[str],
        user: UserRow | None,
        tenant: str = PLATFORM_CHAIN,
    ) -> tuple[TokenRow, str]:
        secret, owner = new_secret(), f"tenants/{tenant}" if tenant else PLATFORM
        row = TokenRow(
            sha256=digest(secret),
            id=self._ids.new("t"),
            owner=owner,
            title=wanted.title,
            principal=user.name if user else caller().name,
            kind=(Kind.USER if user else caller().kind).value,
            roles=roles,
            hint=secret[:HINT],
            user_id=user.id if user else None,
            expires_at=self._end(wanted),
        )
        await queries.put_token(work, row)
        stored = await queries.token(work, owner, row.id)
        details = {"roles": ",".join(roles), "principal": row.principal}
        entry = Entry(tenant=tenant, action="token.create", resource=row.name, details=details)
        await self._journal.append(work, entry)
        return stored or row, secret

    def _end(self, wanted: ApiToken) -> datetime:
        now = self._clock.now()
        if not wanted.HasField("expire_time"):
            return now + DEFAULT_LIFE
        end = moment(wanted.expire_time, "api_token.expire_time")
        if end <= now:
            raise Problem(Code.INVALID_ARGUMENT, field="api_token.expire_time", why="it is over already")
        return end


def _some(roles: list[str]) -> list[str]:
    if not roles:
        raise Problem(Code.INVALID_ARGUMENT, field="api_token.roles", why="it carries none")
    return roles


def _demand_held(roles: Collection[str], held: Collection[str], who: str = "the caller") -> None:
    if missing := sorted(set(roles).difference(held)):
        why = f"{who} does not hold {', '.join(missing)}"
        raise Problem(Code.INVALID_ARGUMENT, field="api_token.roles", why=why)
