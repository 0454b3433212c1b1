"""Queries of renewal. Each takes the transaction it runs in; none begins or ends one."""

# ruff: noqa: S608  only the names of our own columns are put together

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.credentials.credential.store import VersionRow
from services.credentials.keys.envelope import Sealed
from services.credentials.rows import columns, every, one, parameters, run


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshRow:
    """Whether somebody asks the provider for this credential and account, and how it went the last time."""

    tenant: str
    credential: str
    account: str
    generation: int
    asking: bool
    claimed_until: datetime | None
    made_from: int
    failures: int
    not_before: datetime | None
    why: str
    refused: bool


async def lock_refresh(work: AsyncConnection, tenant: str, credential: str, account: str) -> RefreshRow:
    """The row, made where it is missing; nobody else has it until this transaction ends."""
    key = {"tenant": tenant, "credential": credential, "account": account}
    await run(
        work,
        """insert into refreshes (tenant, credential, account) values (:tenant, :credential, :account)
           on conflict do nothing""",
        **key,
    )
    row = await one(
        work,
        RefreshRow,
        f"""select {columns(RefreshRow)} from refreshes
            where tenant = :tenant and credential = :credential and account = :account for update""",
        **key,
    )
    assert row is not None, "it was made one statement ago"  # noqa: S101
    return row


async def put_refresh(work: AsyncConnection, row: RefreshRow) -> None:
    await run(
        work,
        """update refreshes set generation = :generation, asking = :asking, claimed_until = :claimed_until,
               made_from = :made_from, failures = :failures, not_before = :not_before, why = :why, refused = :refused
           where tenant = :tenant and credential = :credential and account = :account""",
        **parameters(row),
    )


async def unfinished(work: AsyncConnection, now: datetime, limit: int) -> list[RefreshRow]:
    """With the worker's role: claims that ran out without a word, and refreshes whose outcome is not known."""
    return await every(
        work,
        RefreshRow,
        f"""select {", ".join("r." + name.strip() for name in columns(RefreshRow).split(","))}
            from refreshes r join credentials c on c.tenant = r.tenant and c.id = r.credential
            where case when r.asking then r.claimed_until <= :now
                       else c.state = 'REFRESH_UNKNOWN' and coalesce(r.not_before, :now) <= :now end
            order by r.claimed_until limit :limit""",
        now=now,
        limit=limit,
    )


async def newest_session(
    work: AsyncConnection, tenant: str, credential: str, made_from: int, account: str
) -> VersionRow | None:
    return await one(
        work,
        VersionRow,
        f"""select {columns(VersionRow)} from credential_versions
            where tenant = :tenant and credential = :credential and made_from = :made_from
              and account = :account and sealed is not null
            order by version desc limit 1""",
        tenant=tenant,
        credential=credential,
        made_from=made_from,
        account=account,
    )


async def account_of(work: AsyncConnection, tenant: str, credential: str, version: int) -> str:
    """For which account a session was made; empty for a version that is none."""
    found = await one(
        work,
        _Account,
        """select account from credential_versions
           where tenant = :tenant and credential = :credential and version = :version""",
        tenant=tenant,
        credential=credential,
        version=version,
    )
    return found.account if found else ""


@dataclass(frozen=True, slots=True)
class _Account:
    account: str


# consent


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentRow:
    """A consent under way. What browsers and the provider carry stands here by its hash alone."""

    tenant: str
    ticket: bytes
    credential: str
    return_path: str
    author: str
    wrapped_key: bytes
    sealed: bytes
    key_version: int
    """The code verifier, sealed like a value."""
    expires_at: datetime
    state: bytes | None = None
    browser: bytes | None = None
    used_at: datetime | None = None

    @property
    def sealed_verifier(self) -> Sealed:
        return Sealed(self.wrapped_key, self.sealed)


async def add_consent(work: AsyncConnection, row: ConsentRow) -> None:
    await run(
        work,
        """insert into consents (tenant, ticket, credential, return_path, author, wrapped_key, sealed, key_version,
               expires_at)
           values (:tenant, :ticket, :credential, :return_path, :author, :wrapped_key, :sealed, :key_version,
               :expires_at)""",
        **parameters(row),
    )


async def forget_consents(work: AsyncConnection, tenant: str, before: datetime) -> None:
    await run(
        work, "delete from consents where tenant = :tenant and expires_at < :at", tenant=tenant, at=before
    )


async def tenants_of(work: AsyncConnection, by: str, digest: bytes) -> Sequence[str]:
    """With the worker's role: whose consent the ticket or the state belongs to; one tenant or none."""
    assert by in ("ticket", "state")  # noqa: S101 - a column of ours
    found = await every(work, _Tenant, f"select tenant from consents where {by} = :digest", digest=digest)
    return [row.tenant for row in found]


@dataclass(frozen=True, slots=True)
class _Tenant:
    tenant: str


async def lock_consent(work: AsyncConnection, tenant: str, by: str, digest: bytes) -> ConsentRow | None:
    assert by in ("ticket", "state")  # noqa: S101 - a column of ours
    return await one(
        work,
        ConsentRow,
        f"select {columns(ConsentRow)} from consents where tenant = :tenant and {by} = :digest for update",
        tenant=tenant,
        digest=digest,
    )


async def put_consent(work: AsyncConnection, row: ConsentRow) -> None:
    await run(
        work,
        """update consents set state = :state, browser = :browser, used_at = :used_at
           where tenant = :tenant and ticket = :ticket""",
        tenant=row.tenant,
        ticket=row.ticket,
        state=row.state,
        browser=row.browser,
        used_at=row.used_at,
    )
