"""Queries about credentials, versions and grants. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.keys.envelope import Sealed
from services.credentials.keys.vault import Holding
from services.credentials.rows import columns, every, one, parameters, run


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRow:
    tenant: str
    id: str
    title: str
    kind: str
    """As the contract's CredentialKind, without its prefix."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    current_version: int = 1
    last_version: int = 1
    """The newest number that was given out, to a session too."""
    state: str = "UNCHECKED"
    """As the contract's Credential.State, without its prefix."""
    state_at: datetime | None = None
    failure: Mapping[str, Any] | None = None
    """A Failure as JSON."""
    expires_at: datetime | None = None
    provider_principal: str = ""
    validated_at: datetime | None = None
    renewal: Mapping[str, Any] = field(default_factory=dict)
    """A Renewal as JSON."""
    renews_at: datetime | None = None
    warned_days: int | None = None
    """Days before its end that people were told of last."""
    revision: int = 1
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/credentials/{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    tenant: str
    credential: str
    version: int
    key_version: int
    author: str
    wrapped_key: bytes | None
    """None once it is destroyed, like `sealed`."""
    sealed: bytes | None
    made_from: int | None = None
    """For a session: the version it was made from."""
    account: str = ""
    """For a session: the account it is for."""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    accepted_until: datetime | None = None
    """Until when it is accepted beside a newer one."""
    request_id: str = ""

    @property
    def holding(self) -> Holding:
        return Holding(self.tenant, self.credential, self.version)

    @property
    def sealed_value(self) -> Sealed | None:
        if self.wrapped_key is None or self.sealed is None:
            return None
        return Sealed(self.wrapped_key, self.sealed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRow:
    tenant: str
    id: str
    credential: str
    holder: str
    """`plugins/github`, `services/gateway`."""
    subject: str
    """The connection or app."""
    slot: str
    entry: str
    purpose: str
    """As the contract's Purpose, without its prefix."""
    plugin_versions: str = ""
    fields: Sequence[str] = ()
    account: str = ""
    author: str
    created_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/credentials/{self.credential}/grants/{self.id}"


@dataclass(frozen=True, slots=True)
class Use:
    """What somebody wants a secret for; a grant allows exactly one."""

    tenant: str
    holder: str
    subject: str
    slot: str
    entry: str
    purpose: str
    credential: str = ""
    """Which one is meant; empty: that of the newest grant."""


# credentials


async def add_credential(work: AsyncConnection, row: CredentialRow) -> bool:
    """False where the id is in use."""
    done = await run(
        work,
        """
            insert into credentials (tenant, id, title, kind, attributes, labels, request_id, current_version,
                last_version, state, expires_at, renewal, renews_at)
            values (:tenant, :id, :title, :kind, cast(:attributes as json), cast(:labels as json), :request_id,
                :current_version, :last_version, :state, :expires_at, cast(:renewal as json), :renews_at)
            on conflict do nothing
        """,
        **parameters(row),
    )
    return done == 1


async def credential(
    work: AsyncConnection, tenant: str, credential_id: str, *, locked: bool = False
) -> CredentialRow | None:
    """`locked`: until this transaction ends nobody else changes it."""
    return await one(
        work,
        CredentialRow,
        f"""select {columns(CredentialRow)} from credentials where tenant = :tenant and id = :id
            {"for update" if locked else ""}""",
        tenant=tenant,
        id=credential_id,
    )


async def credentials(work: AsyncConnection, tenant: str, after: str, limit: int) -> list[CredentialRow]:
    return await every(
        work,
        CredentialRow,
        f"""select {columns(CredentialRow)} from credentials
            where tenant = :tenant and id > :after order by id limit :limit""",
        tenant=tenant,
        after=after,
        limit=limit,
    )


async def next_version(work: AsyncConnection, tenant: str, credential_id: str) -> int:
    """A number that no version of this credential has had."""
    row = await one(
        work,
        _Number,
        """update credentials set last_version = last_version + 1 where tenant = :tenant and id = :id
           returning last_version as number""",
        tenant=tenant,
        id=credential_id,
    )
    assert row is not None, "the credential is there: its caller has read it in this transaction"  # noqa: S101
    return row.number


@dataclass(frozen=True, slots=True)
class _Number:
    number: int


async def put_version_in_use(work: AsyncConnection, row: CredentialRow, accepted_until: datetime) -> None:
    """`row.current_version` is the one to use; the one before is accepted until then."""
    await run(
        work,
        """update credential_versions set accepted_until = :until
           where tenant = :tenant and credential = :id and made_from is null
             and version = (select current_version from credentials where tenant = :tenant and id = :id)""",
        tenant=row.tenant,
        id=row.id,
        until=accepted_until,
    )
    await run(
        work,
        """update credentials set current_version = :current_version, expires_at = :expires_at,
               attributes = cast(:attributes as json), renews_at = :renews_at, warned_days = null,
               revision = revision + 1, updated_at = now()
           where tenant = :tenant and id = :id""",
        tenant=row.tenant,
        id=row.id,
        current_version=row.current_version,
        expires_at=row.expires_at,
        attributes=json.dumps(dict(row.attributes)),
        renews_at=row.renews_at,
    )


async def update_credential(work: AsyncConnection, row: CredentialRow) -> None:
    """What a person may change about it."""
    await run(
        work,
        """update credentials set title = :title, labels = cast(:labels as json),
               renewal = cast(:renewal as json), renews_at = :renews_at, revision = revision + 1, updated_at = now()
           where tenant = :tenant and id = :id""",
        tenant=row.tenant,
        id=row.id,
        title=row.title,
        labels=json.dumps(dict(row.labels)),
        renewal=json.dumps(dict(row.renewal)),
        renews_at=row.renews_at,
    )


async def note_validation(work: AsyncConnection, row: CredentialRow, principal: str, now: datetime) -> None:
    await run(
        work,
        """update credentials set validated_at = :now, provider_principal = :principal, revision = revision + 1
           where tenant = :tenant and id = :id""",
        tenant=row.tenant,
        id=row.id,
        now=now,
        principal=principal or row.provider_principal,
    )


async def postpone_renewal(work: AsyncConnection, tenant: str, credential_id: str, until: datetime) -> None:
    await run(
        work,
        """update credentials set renews_at = :until
           where tenant = :tenant and id = :id and renews_at < :until""",
        tenant=tenant,
        id=credential_id,
        until=until,
    )


async def note_warning(work: AsyncConnection, row: CredentialRow, days: int) -> None:
    await run(
        work,
        "update credentials set warned_days = :days where tenant = :tenant and id = :id",
        tenant=row.tenant,
        id=row.id,
        days=days,
    )


async def delete_credential(work: AsyncConnection, tenant: str, credential_id: str) -> None:
    for table, column in (
        ("grants", "credential"),
        ("consents", "credential"),
        ("refreshes", "credential"),
        ("credential_versions", "credential"),
        ("credentials", "id"),
    ):
        await run(
            work,
            f"delete from {table} where tenant = :tenant and {column} = :credential",
            tenant=tenant,
            credential=credential_id,
        )


# versions


async def add_version(work: AsyncConnection, row: VersionRow) -> None:
    await run(
        work,
        """
            insert into credential_versions (tenant, credential, version, made_from, account, wrapped_key, sealed,
                key_version, author, expires_at, accepted_until, request_id)
            values (:tenant, :credential, :version, :made_from, :account, :wrapped_key, :sealed, :key_version,
                :author, :expires_at, :accepted_until, :request_id)
        """,
        **parameters(row),
    )


async def version(work: AsyncConnection, tenant: str, credential_id: str, number: int) -> VersionRow | None:
    return await one(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where tenant = :tenant and credential = :credential and version = :version""",
        tenant=tenant,
        credential=credential_id,
        version=number,
    )


async def versions(
    work: AsyncConnection, tenant: str, credential_id: str, before: int | None, limit: int
) -> list[VersionRow]:
    """Those that were stored, newest first; sessions are no versions of their own."""
    return await every(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where tenant = :tenant and credential = :credential and made_from is null
              and version < coalesce(cast(:before as bigint), 9223372036854775807)
            order by version desc limit :limit""",
        tenant=tenant,
        credential=credential_id,
        before=before,
        limit=limit,
    )


async def version_of_request(
    work: AsyncConnection, tenant: str, credential_id: str, request_id: str
) -> VersionRow | None:
    return await one(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where tenant = :tenant and credential = :credential and request_id = :request_id""",
        tenant=tenant,
        credential=credential_id,
        request_id=request_id,
    )


async def destroy_versions(
    work: AsyncConnection, tenant: str, credential_id: str, number: int | None = None
) -> int:
    """The data keys of one version and what was made from it, or of all, are no more. How many there were."""
    return await run(
        work,
        """update credential_versions set wrapped_key = null, sealed = null
           where tenant = :tenant and credential = :credential and wrapped_key is not null
             and (cast(:number as bigint) is null or version = :number or made_from = :number)""",
        tenant=tenant,
        credential=credential_id,
        number=number,
    )


async def forget_session(work: AsyncConnection, row: VersionRow) -> None:
    await run(
        work,
        """delete from credential_versions
           where tenant = :tenant and credential = :credential and version = :version and made_from is not null""",
        tenant=row.tenant,
        credential=row.credential,
        version=row.version,
    )


async def outlived(work: AsyncConnection, now: datetime, limit: int) -> list[VersionRow]:
    """With the worker's role: what is not accepted any more and still has its key."""
    return await every(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where wrapped_key is not null
              and (accepted_until <= :now or (made_from is not null and expires_at <= :now))
            order by coalesce(accepted_until, expires_at) limit :limit""",
        now=now,
        limit=limit,
    )


# grants


async def put_grant(work: AsyncConnection, row: GrantRow) -> GrantRow:
    """Add one, or answer the one that allows the same already."""
    found = await one(
        work,
        GrantRow,
        f"""
            insert into grants (tenant, id, credential, holder, subject, slot, entry, purpose, plugin_versions, fields,
                account, author, expires_at)
            values (:tenant, :id, :credential, :holder, :subject, :slot, :entry, :purpose, :plugin_versions, :fields,
                :account, :author, :expires_at)
            on conflict on constraint grants_once do update
            set expires_at = excluded.expires_at, plugin_versions = excluded.plugin_versions,
                fields = excluded.fields, account = excluded.account, created_at = now()
            returning {columns(GrantRow)}
        """,
        **(parameters(row) | {"fields": list(row.fields)}),
    )
    assert found is not None, "an upsert returns its row"  # noqa: S101
    return found


async def grant_for(work: AsyncConnection, use: Use) -> GrantRow | None:
    """The grant that allows it, if one does now."""
    return await one(
        work,
        GrantRow,
        f"""select {columns(GrantRow)} from grants
            where tenant = :tenant and holder = :holder and subject = :subject and slot = :slot
              and entry = :entry and purpose = :purpose and (expires_at is null or expires_at > now())
              and (:credential = '' or credential = :credential)
            order by created_at desc limit 1""",
        **asdict(use),
    )


async def grant(work: AsyncConnection, tenant: str, credential_id: str, grant_id: str) -> GrantRow | None:
    return await one(
        work,
        GrantRow,
        f"""select {columns(GrantRow)} from grants
            where tenant = :tenant and credential = :credential and id = :id""",
        tenant=tenant,
        credential=credential_id,
        id=grant_id,
    )


async def grants(
    work: AsyncConnection, tenant: str, credential_id: str, *, subject: str, after: str, limit: int
) -> list[GrantRow]:
    """Of one credential, or of all where none is named."""
    return await every(
        work,
        GrantRow,
        f"""select {columns(GrantRow)} from grants
            where tenant = :tenant and (:credential = '' or credential = :credential)
              and (:subject = '' or subject = :subject) and credential || '/' || id > :after
            order by credential || '/' || id limit :limit""",
        tenant=tenant,
        credential=credential_id,
        subject=subject,
        after=after,
        limit=limit,
    )


async def grants_to_end(
    work: AsyncConnection, tenant: str, subject: str, settled: timedelta
) -> list[GrantRow]:
    """Of a connection, those that were given at least so long ago."""
    return await every(
        work,
        GrantRow,
        f"""select {columns(GrantRow)} from grants
            where tenant = :tenant and subject = :subject and created_at <= now() - cast(:settled as interval)""",
        tenant=tenant,
        subject=subject,
        settled=settled,
    )


async def delete_grant(work: AsyncConnection, row: GrantRow) -> None:
    await run(work, "delete from grants where tenant = :tenant and id = :id", tenant=row.tenant, id=row.id)


async def connections_of(work: AsyncConnection, tenant: str, credential_id: str) -> list[str]:
    """Connections, and apps, that a grant lets use it, by name."""
    found = await every(
        work,
        _Subject,
        """select distinct subject from grants where tenant = :tenant and credential = :credential
           order by subject""",
        tenant=tenant,
        credential=credential_id,
    )
    return [row.subject for row in found]


@dataclass(frozen=True, slots=True)
class _Subject:
    subject: str


# states


async def enter_state(work: AsyncConnection, row: CredentialRow) -> None:
    await run(
        work,
        """update credentials set state = :state, state_at = :state_at, failure = cast(:failure as json),
               revision = revision + 1, updated_at = now()
           where tenant = :tenant and id = :id""",
        tenant=row.tenant,
        id=row.id,
        state=row.state,
        state_at=row.state_at,
        failure=None if row.failure is None else json.dumps(dict(row.failure)),
    )


async def note_change(work: AsyncConnection) -> None:
    """Something changed that the registry must know. Last but the audit in a transaction: everybody's row."""
    await run(work, "update covered set generation = generation + 1")


async def generation(work: AsyncConnection) -> int:
    found = await one(work, _Number, "select generation as number from covered")
    return 0 if found is None else found.number


@dataclass(frozen=True, slots=True)
class Covered:
    """A credential that a grant covers, and who uses it."""

    tenant: str
    id: str
    state: str
    state_at: datetime
    failure: Mapping[str, Any] | None
    current_version: int
    subjects: Sequence[str]


async def covered(work: AsyncConnection) -> list[Covered]:
    """With the worker's role: those of every tenant."""
    return await every(
        work,
        Covered,
        """select c.tenant, c.id, c.state, c.state_at, c.failure, c.current_version,
                  array_agg(distinct g.subject order by g.subject) as subjects
           from credentials c join grants g on g.tenant = c.tenant and g.credential = c.id
           group by c.tenant, c.id order by c.tenant, c.id""",
    )


# what time brings


@dataclass(frozen=True, slots=True)
class Due:
    tenant: str
    id: str


async def due(work: AsyncConnection, now: datetime, warn_from: datetime, limit: int) -> list[Due]:
    """With the worker's role: what has ended, renews now, or ends before `warn_from` and may need a word."""
    return await every(
        work,
        Due,
        """select tenant, id from credentials
           where state not in ('EXPIRED', 'REVOKED', 'REAUTHORISATION_REQUIRED')
             and (renews_at <= :now or expires_at <= :now
                  or (expires_at <= :warn_from
                      and (warned_days is null
                           or expires_at <= :now + make_interval(days => case warned_days
                                when 30 then 7 when 7 then 1 else 0 end))))
           order by least(renews_at, expires_at) limit :limit""",
        now=now,
        warn_from=warn_from,
        limit=limit,
    )
