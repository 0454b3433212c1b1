"""Queries about leases. Each takes the transaction it runs in; none begins or ends one.

Whoever takes a secret away calls one of `revoke_of_…` or `outdate` in the transaction that does it, with the
credential's row locked. Whoever gives one away holds that row as well (`hold`): so a lease is either there to be
revoked, or is not given.
"""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.credential.store import GrantRow, VersionRow
from services.credentials.rows import columns, every, one, parameters, run


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRow:
    tenant: str
    id: str
    credential: str
    grant_id: str
    holder: str
    """`plugins/github`, `services/gateway`."""
    subject: str
    slot: str
    entry: str
    purpose: str
    """As the contract's Purpose, without its prefix."""
    version: int
    account: str = ""
    state: str = "ACTIVE"
    """As the contract's Lease.State, without its prefix."""
    created_at: datetime | None = None
    expires_at: datetime
    beside: bool = False
    """Whether other versions that are still accepted were given with it."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/credentials/{self.credential}/leases/{self.id}"


@dataclass(frozen=True, slots=True)
class Client:
    """A process that asks for leases."""

    name: str
    """As which it holds leases itself."""
    hosts_plugins: bool = False
    """Whether it has those of every plugin too."""


_HELD = "(holder = :client or (:hosts_plugins and holder like 'plugins/%'))"


@dataclass(frozen=True, slots=True)
class _Number:
    number: int


# giving


async def hold(work: AsyncConnection, grant: GrantRow, usable: Collection[str]) -> int | None:
    """The current version of the credential that a grant is for, if it may be given away in this transaction.

    Until that ends nobody takes away the credential or the grant, brings a new version or suspends the tenant.
    """
    found = await one(
        work,
        _Number,
        """select c.current_version as number from credentials c
           join grants g on g.tenant = c.tenant and g.credential = c.id
           join tenants t on t.id = c.tenant
           where c.tenant = :tenant and c.id = :credential and g.id = :grant
             and c.state = any(:usable) and t.state = 'ACTIVE'
             and (g.expires_at is null or g.expires_at > now())
           for share""",
        tenant=grant.tenant,
        credential=grant.credential,
        grant=grant.id,
        usable=list(usable),
    )
    return found.number if found else None


async def superseded(work: AsyncConnection, row: VersionRow) -> bool:
    """Whether there is a newer version that takes its place: of a session, one for the same account."""
    found = await one(
        work,
        _Number,
        """select 1 as number where exists (
               select from credential_versions
               where tenant = :tenant and credential = :credential and version > :version
                 and account = :account and (made_from is null) = :is_own and sealed is not null)""",
        tenant=row.tenant,
        credential=row.credential,
        version=row.version,
        account=row.account,
        is_own=row.made_from is None,
    )
    return found is not None


async def accepted_beside(
    work: AsyncConnection, tenant: str, credential: str, version: int
) -> list[VersionRow]:
    """Other versions that are still accepted, newest first."""
    return await every(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where tenant = :tenant and credential = :credential and version <> :version
              and accepted_until > now() and sealed is not null
            order by version desc""",
        tenant=tenant,
        credential=credential,
        version=version,
    )


async def given(work: AsyncConnection, grant: GrantRow, at_least_until: datetime) -> LeaseRow | None:
    """The lease that the grant's holder has already, if it is good for a while and nothing newer is there."""
    return await one(
        work,
        LeaseRow,
        f"""select {columns(LeaseRow)} from leases
            where tenant = :tenant and credential = :credential and grant_id = :grant and state = 'ACTIVE'
              and account = :account and expires_at >= :at_least_until
              and expires_at <= coalesce(cast(:grant_ends as timestamptz), 'infinity')
            order by version desc limit 1""",
        tenant=grant.tenant,
        credential=grant.credential,
        grant=grant.id,
        account=grant.account,
        grant_ends=grant.expires_at,
        at_least_until=at_least_until,
    )


async def give(work: AsyncConnection, row: LeaseRow) -> LeaseRow:
    """The lease that there is for exactly this, made to last as long as `row`; where there is none, `row`."""
    found = await one(
        work,
        LeaseRow,
        f"""
            insert into leases (tenant, id, credential, grant_id, holder, subject, slot, entry, purpose, version,
                account, state, expires_at, beside)
            values (:tenant, :id, :credential, :grant_id, :holder, :subject, :slot, :entry, :purpose, :version,
                :account, :state, :expires_at, :beside)
            on conflict (tenant, credential, holder, subject, slot, entry, purpose, version)
                where state <> 'REVOKED'
            do update set grant_id = excluded.grant_id, account = excluded.account, state = 'ACTIVE',
                expires_at = excluded.expires_at, beside = excluded.beside
            returning {columns(LeaseRow)}
        """,
        **parameters(row),
    )
    assert found is not None, "an upsert returns its row"  # noqa: S101
    return found


# taking away


async def revoke_of_credential(
    work: AsyncConnection, tenant: str, credential: str, version: int | None = None
) -> int:
    """Revoke the leases of a version, or of all; how many. Others may have been given that version beside their own."""
    revoked = await run(
        work,
        """update leases set state = 'REVOKED'
           where tenant = :tenant and credential = :credential and state <> 'REVOKED'
             and version = coalesce(cast(:version as bigint), version)""",
        tenant=tenant,
        credential=credential,
        version=version,
    )
    outdated = await run(
        work,
        """update leases set state = 'OUTDATED'
           where tenant = :tenant and credential = :credential and state = 'ACTIVE'
             and beside""",
        tenant=tenant,
        credential=credential,
    )
    if revoked or outdated:
        await note_change(work)
    return revoked


async def revoke_of_grant(work: AsyncConnection, tenant: str, grant: str) -> int:
    revoked = await run(
        work,
        """update leases set state = 'REVOKED'
           where tenant = :tenant and grant_id = :grant and state <> 'REVOKED'""",
        tenant=tenant,
        grant=grant,
    )
    if revoked:
        await note_change(work)
    return revoked


async def outdate_of_grant(work: AsyncConnection, tenant: str, grant: str) -> int:
    """It allows something else now: whoever holds something on it should come."""
    outdated = await run(
        work,
        "update leases set state = 'OUTDATED' where tenant = :tenant and grant_id = :grant and state = 'ACTIVE'",
        tenant=tenant,
        grant=grant,
    )
    if outdated:
        await note_change(work)
    return outdated


async def revoke_of_tenant(work: AsyncConnection, tenant: str) -> int:
    revoked = await run(
        work,
        "update leases set state = 'REVOKED' where tenant = :tenant and state <> 'REVOKED'",
        tenant=tenant,
    )
    if revoked:
        await note_change(work)
    return revoked


async def outdate(
    work: AsyncConnection, tenant: str, credential: str, newer_version: int, account: str = ""
) -> int:
    """A newer version is there: whoever holds an older one should come. With an account, those for it alone."""
    outdated = await run(
        work,
        """update leases set state = 'OUTDATED'
           where tenant = :tenant and credential = :credential and state = 'ACTIVE' and version < :version
             and (:account = '' or account = :account)""",
        tenant=tenant,
        credential=credential,
        version=newer_version,
        account=account,
    )
    if outdated:
        await note_change(work)
    return outdated


async def uses(work: AsyncConnection, tenant: str, credential: str) -> int:
    """How many leases of it are out there, and not over."""
    found = await one(
        work,
        _Number,
        """select count(*) as number from leases
           where tenant = :tenant and credential = :credential and state <> 'REVOKED' and expires_at > now()""",
        tenant=tenant,
        credential=credential,
    )
    return found.number if found else 0


async def give_back(work: AsyncConnection, tenant: str, lease: str, client: Client) -> LeaseRow | None:
    """What was given back; None where the client has no such lease."""
    return await one(
        work,
        LeaseRow,
        f"""delete from leases where tenant = :tenant and id = :id and {_HELD} returning {columns(LeaseRow)}""",
        tenant=tenant,
        id=lease,
        client=client.name,
        hosts_plugins=client.hosts_plugins,
    )


# looking


async def note_change(work: AsyncConnection) -> None:
    """Holders must be told something. Everybody's row: just before the one that counts states."""
    await run(work, "update lease_changes set generation = generation + 1")


async def generation(work: AsyncConnection) -> int:
    found = await one(work, _Number, "select generation as number from lease_changes")
    return found.number if found else 0


async def held(work: AsyncConnection, client: Client) -> list[LeaseRow]:
    """Every lease of this client that is not over, revoked ones too; across tenants, for a worker."""
    return await every(
        work,
        LeaseRow,
        f"""select {columns(LeaseRow)} from leases where {_HELD} and expires_at > now()
            order by tenant, credential, id""",
        client=client.name,
        hosts_plugins=client.hosts_plugins,
    )


async def lease(work: AsyncConnection, tenant: str, lease_id: str, client: Client) -> LeaseRow | None:
    return await one(
        work,
        LeaseRow,
        f"select {columns(LeaseRow)} from leases where tenant = :tenant and id = :id and {_HELD}",
        tenant=tenant,
        id=lease_id,
        client=client.name,
        hosts_plugins=client.hosts_plugins,
    )


async def leases(
    work: AsyncConnection, tenant: str, credential: str, after: tuple[str, str], limit: int
) -> list[LeaseRow]:
    """Those that are not over, by name; `credential` empty: of all."""
    return await every(
        work,
        LeaseRow,
        f"""select {columns(LeaseRow)} from leases
            where tenant = :tenant and (:credential = '' or credential = :credential) and expires_at > now()
              and (credential collate "C", id collate "C") > (:after_credential, :after_id)
            order by credential collate "C", id collate "C" limit :limit""",
        tenant=tenant,
        credential=credential,
        after_credential=after[0],
        after_id=after[1],
        limit=limit,
    )


# keeping


async def forget_ended(work: AsyncConnection) -> int:
    """Across tenants, for a worker."""
    return await run(work, "delete from leases where expires_at < now() - interval '1 hour'")
