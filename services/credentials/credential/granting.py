"""Grants: who may have which credential for what. Nothing is allowed without one."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock, Ids
from foundation.errors import Code, Problem
from foundation.identity.names import ID, tenant_of
from foundation.rpc.call import author
from foundation.rpc.times import moment
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.credential import store as queries
from services.credentials.credential.book import Ref
from services.credentials.credential.checks import Field
from services.credentials.credential.kinds import KINDS
from services.credentials.credential.store import CredentialRow, GrantRow
from services.credentials.identities.standing import require_active
from services.credentials.leases import store as leases
from services.credentials.leases.ranges import is_range
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL, Grant, Purpose

_CONNECTION = re.compile(r"tenants/[a-z0-9-]+/connections/[a-z0-9-]+")
_APP = re.compile(r"apps/[a-z0-9-]+")
_SLOT = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_ENTRY = re.compile(r"[\w.:/-]{0,128}")
_ACCOUNT = re.compile(r"[^\0-\x1f\x7f]{0,256}")


class GrantBook:
    def __init__(self, store: Store, journal: Journal, clock: Clock, ids: Ids) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._ids = ids

    async def create(self, ref: Ref, given: Grant) -> GrantRow:
        """A grant that allows the same already is made to end and to narrow as this one does."""
        row = self._row(ref, given)
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            await require_active(work, ref.tenant)
            credential = await queries.credential(work, ref.tenant, ref.id)
            if credential is None:
                raise Problem(Code.NOT_FOUND, what=str(ref))
            _fits(row, credential)
            stored = await queries.put_grant(work, row)
            await leases.outdate_of_grant(work, ref.tenant, stored.id)
            await queries.note_change(work)
            details = {"holder": stored.holder, "subject": stored.subject, "purpose": stored.purpose}
            entry = Entry(
                tenant=ref.tenant,
                action="grant.create",
                resource=stored.name,
                fields=stored.fields,
                details=details,
            )
            await self._journal.append(work, entry)
        return stored

    async def delete(self, ref: Ref, grant: str) -> None:
        """What was given on it is taken back; a grant that is not there needs no taking."""
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await queries.grant(work, ref.tenant, ref.id, grant)
            if row is not None:
                await self._delete(work, row)

    async def end(
        self, tenant: str, subject: str, kept: Collection[tuple[str, str, str]], settled: timedelta
    ) -> int:
        """The grants of a connection or app end, but for what it still wants: slot, entry and credential.

        How many ended.
        """
        ended = 0
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            for row in await queries.grants_to_end(work, tenant, subject, settled):
                credential = f"tenants/{tenant}/credentials/{row.credential}"
                if (row.slot, row.entry, credential) not in kept:
                    await self._delete(work, row)
                    ended += 1
        return ended

    async def _delete(self, work: AsyncConnection, row: GrantRow) -> None:
        await leases.revoke_of_grant(work, row.tenant, row.id)
        await queries.delete_grant(work, row)
        await queries.note_change(work)
        details = {"holder": row.holder, "subject": row.subject, "purpose": row.purpose}
        entry = Entry(tenant=row.tenant, action="grant.delete", resource=row.name, details=details)
        await self._journal.append(work, entry)

    def _row(self, ref: Ref, grant: Grant) -> GrantRow:
        holder = _holder(grant)
        if grant.purpose not in Purpose.values() or not grant.purpose:
            raise Field("grant.purpose").wrong("it is not given")
        if not _SLOT.fullmatch(grant.slot):
            raise Field("grant.slot").wrong("it is not the name of a slot")
        if not _ENTRY.fullmatch(grant.entry):
            raise Field("grant.entry").wrong("it is not the name of an entry")
        if not _ACCOUNT.fullmatch(grant.account):
            raise Field("grant.account").wrong("it is not the name of an account")
        if not is_range(grant.plugin_versions):
            raise Field("grant.plugin_versions").wrong("it is not a range of versions like >=1.2,<2")
        ends = moment(grant.expire_time, "grant.expire_time") if grant.HasField("expire_time") else None
        if ends is not None and ends <= self._clock.now():
            raise Field("grant.expire_time").wrong("it is over already")
        return GrantRow(
            tenant=ref.tenant,
            id=self._ids.new("g"),
            credential=ref.id,
            holder=holder,
            subject=_subject(grant, ref.tenant),
            slot=grant.slot,
            entry=grant.entry,
            purpose=Purpose.Name(grant.purpose).removeprefix("PURPOSE_"),
            plugin_versions=grant.plugin_versions,
            fields=tuple(grant.fields),
            account=grant.account,
            author=author(),
            expires_at=ends,
        )


def _subject(grant: Grant, tenant: str) -> str:
    """The connection or app that it is for: a connection of the same tenant, or an app, which is nobody's."""
    if grant.app:
        if grant.connection:
            raise Field("grant.app").wrong("a grant is for a connection or for an app")
        if not _APP.fullmatch(grant.app):
            raise Field("grant.app").wrong("it is not the name of an app")
        if grant.purpose == PURPOSE_CALL:
            raise Field("grant.app").wrong("plugins call for connections; an app's deliveries are verified")
        return grant.app
    if not _CONNECTION.fullmatch(grant.connection) or tenant_of(grant.connection) != tenant:
        raise Field("grant.connection").wrong(f"it must be a connection of tenants/{tenant}")
    return grant.connection


def _holder(grant: Grant) -> str:
    which = grant.WhichOneof("holder")
    if which is None:
        raise Field("grant.holder").wrong("it names nobody")
    name = getattr(grant, which)
    if not ID.fullmatch(name):
        raise Field(f"grant.{which}").wrong(f"it is not the name of a {which}")
    return f"{which}s/{name}"


def _fits(row: GrantRow, credential: CredentialRow) -> None:
    """A grant that could never give anything is a mistake that its author should hear of."""
    allowed = KINDS[credential.kind].released
    for field in row.fields:
        if field not in allowed:
            why = f"a {credential.kind.lower()} gives {', '.join(allowed)}, not {field[:64]!r}"
            raise Field("grant.fields").wrong(why)
    if row.purpose == "WEBHOOK_VERIFY" and credential.kind != "WEBHOOK_SECRET":
        why = f"webhooks are verified with a webhook_secret, and {credential.name} is a {credential.kind.lower()}"
        raise Field("grant.purpose").wrong(why)
