"""How a secret leaves: found out, recorded, and only then opened.

    look      what a grant allows, and which version of which credential that is; nothing is opened
    record    the intent, durable, with the names of the fields and never their values
    give      in one transaction: the grant and the credential are still there and are held, the value is opened,
              the lease is written

What fails after the intent is recorded as failed. An intent that no failure follows was carried out, or the
process ended in between: whoever reads the audit takes it for carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock, Ids
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.credentials.audit.denials import Denials
from services.credentials.audit.entry import PLATFORM, Entry
from services.credentials.audit.entry import Outcome as Ending
from services.credentials.audit.recorder import Recorder
from services.credentials.credential import kinds, states
from services.credentials.credential import store as credentials
from services.credentials.credential.store import Use, VersionRow
from services.credentials.identities.standing import require_active
from services.credentials.keys.vault import Vault
from services.credentials.leases import store as queries
from services.credentials.leases.asking import Wanted, denied, may_ask, use_of
from services.credentials.leases.loan import ACTION, VERIFY, Loan, objection
from services.credentials.leases.store import Client, LeaseRow
from services.credentials.leases.wire import Outcome, leased_secret, refused
from services.credentials.renewal.port import Renewals
from tieline.common.v1.failure_pb2 import (
    FAILURE_KIND_AUTH_FAILED,
    FAILURE_KIND_INTERNAL,
    FAILURE_KIND_PERMISSION_DENIED,
    FAILURE_KIND_TRANSIENT,
)

LIFE = timedelta(hours=1)
"""Of a lease, unless what it is for ends earlier."""
AT_A_TIME = 8
"""Credentials that are asked after at once for one request."""

RECORDED = frozenset({FAILURE_KIND_PERMISSION_DENIED, FAILURE_KIND_AUTH_FAILED})
"""Refusals that a reader of the audit wants to know of; the others say that the moment was wrong."""


Step = Loan | Outcome
"""On the way: a loan; at its end, or where it goes no further: the answer."""


@dataclass(frozen=True, slots=True)
class Lending:
    store: Store
    vault: Vault
    renewals: Renewals
    recorder: Recorder
    denials: Denials
    clock: Clock
    ids: Ids

    async def lend(self, client: Client, requests: Sequence[Wanted]) -> list[Outcome]:
        """One answer for each. Raises where the audit cannot be written: then nothing has left."""
        steps = await self._look(client, requests)
        steps = await self._choose_versions(steps)
        await self.denials.record(_denials(client, requests, steps))
        steps = await self._intend(steps)
        answers = await self._give(steps)
        await self._record_failures(steps, answers)
        return answers

    async def _look(self, client: Client, requests: Sequence[Wanted]) -> list[Step]:
        uses = [use_of(client, wanted) for wanted in requests]
        tenants = {use.tenant for use in uses if isinstance(use, Use)}
        async with self.store.unit_of_work(tenants=tenants, read_only=True) as work:
            active = {tenant for tenant in tenants if await _is_active(work, tenant)}
            return [
                use if isinstance(use, Outcome) else await self._find(work, client, wanted, use, active)
                for wanted, use in zip(requests, uses, strict=True)
            ]

    async def _find(
        self, work: AsyncConnection, client: Client, wanted: Wanted, use: Use, active: set[str]
    ) -> Step:
        """Default deny: without a grant for exactly this there is nothing, whoever asks."""
        if not may_ask(client, wanted):
            return denied("HOLDER_FOREIGN", f"{client.name} does not ask for plugins")
        if use.tenant not in active:
            return denied("TENANT_NOT_ACTIVE", f"there is no active tenant {use.tenant}")
        grant = await credentials.grant_for(work, use)
        credential = await credentials.credential(work, use.tenant, grant.credential) if grant else None
        if grant is None or credential is None:
            return denied("GRANT_MISSING", "no grant allows it")
        loan = Loan(use, grant, credential)
        if use.purpose == VERIFY:
            loan = replace(
                loan,
                beside=await queries.accepted_beside(
                    work, use.tenant, credential.id, credential.current_version
                ),
            )
        return objection(loan, wanted) or await self._find_given(work, loan)

    async def _find_given(self, work: AsyncConnection, loan: Loan) -> Loan:
        """Where the holder has a lease already, that settles the version."""
        lease = await self._given(work, loan)
        if lease is None:
            return loan
        version = await credentials.version(work, lease.tenant, lease.credential, lease.version)
        if version is None or version.sealed_value is None:
            return loan
        return replace(loan, lease=lease, version=version)

    async def _choose_versions(self, steps: Sequence[Step]) -> list[Step]:
        """Asked once for each credential and account, however many want it, and outside of transactions."""
        open_ = {
            (step.credential.name, step.grant.account): step
            for step in steps
            if isinstance(step, Loan) and step.version is None
        }
        turn = asyncio.Semaphore(AT_A_TIME)

        async def choose(loan: Loan) -> VersionRow | Outcome:
            async with turn:
                return await self._choose_version(loan)

        answers = await asyncio.gather(*map(choose, open_.values()), return_exceptions=True)
        chosen: dict[tuple[str, str], VersionRow | Outcome] = {}
        for key, answer in zip(open_, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            chosen[key] = answer
        settled: list[Step] = []
        for step in steps:
            if isinstance(step, Loan) and step.version is None:
                version = chosen[step.credential.name, step.grant.account]
                settled.append(version if isinstance(version, Outcome) else replace(step, version=version))
            else:
                settled.append(step)
        return settled

    async def _choose_version(self, loan: Loan) -> VersionRow | Outcome:
        try:
            version = await self.renewals.usable(loan.credential, loan.grant.account)
        except Problem as problem:
            if problem.code is Code.CREDENTIAL_UNUSABLE:
                return refused(FAILURE_KIND_AUTH_FAILED, problem.code.name, problem.sentence)
            if problem.code in (Code.CREDENTIAL_REFRESHING, Code.PROVIDER_UNAVAILABLE):
                return refused(FAILURE_KIND_TRANSIENT, problem.code.name, problem.sentence)
            raise
        if version.expires_at is not None and version.expires_at <= self.clock.now():
            return refused(FAILURE_KIND_AUTH_FAILED, "CREDENTIAL_EXPIRED", "its time is over")
        makes_sessions = kinds.makes_sessions(loan.credential.kind, loan.credential.attributes)
        if makes_sessions and version.made_from is None:
            return refused(FAILURE_KIND_AUTH_FAILED, "SESSION_MISSING", "no session can be made of it")
        return version

    async def _intend(self, steps: Sequence[Step]) -> list[Step]:
        loans = [step for step in steps if isinstance(step, Loan)]
        if not loans:
            return list(steps)
        sequences = iter(await self.recorder.record(*(loan.entry(Ending.INTENT) for loan in loans)))
        return [replace(step, intent=next(sequences)) if isinstance(step, Loan) else step for step in steps]

    async def _give(self, steps: Sequence[Step]) -> list[Outcome]:
        answers = {index: step for index, step in enumerate(steps) if isinstance(step, Outcome)}
        loans = {index: step for index, step in enumerate(steps) if isinstance(step, Loan)}
        if loans:
            tenants = {loan.use.tenant for loan in loans.values()}
            async with self.store.unit_of_work(tenants=tenants) as work:
                # In one order for everybody, so that no two wait for each other's rows.
                for index in sorted(loans, key=lambda index: _order(loans[index])):
                    answers[index] = await self._give_one(work, loans[index])
        return [answers[index] for index in range(len(steps))]

    async def _give_one(self, work: AsyncConnection, loan: Loan) -> Outcome:
        version = loan.version
        assert version is not None, "every loan has its version by now"  # noqa: S101
        beside = loan.beside
        # Again: it may have been revoked since we looked, or given to somebody who asked at the same time.
        lease = await self._given(work, loan)
        if lease is None and (refusal := await self._hold(work, loan, version)):
            return refusal
        if beside:
            still = await queries.accepted_beside(work, loan.use.tenant, version.credential, version.version)
            beside = [row for row in still if row.version in {row.version for row in beside}]
        try:
            opened = await self._open(work, loan, version)
            others = {row.version: (await self._open(work, loan, row))["secret"] for row in beside}
        except Problem as problem:
            if problem.code not in (Code.SECRET_UNOPENABLE, Code.NOT_FOUND):
                raise
            return refused(FAILURE_KIND_INTERNAL, problem.code.name, problem.sentence)
        lease = lease or await queries.give(work, self._lease(loan, version, beside))
        return leased_secret(lease, loan.credential, version, opened, others)

    async def _hold(self, work: AsyncConnection, loan: Loan, version: VersionRow) -> Outcome | None:
        """Until the transaction ends nobody takes it away or replaces it; why it cannot be given, if that happened."""
        current = await queries.hold(work, loan.grant, states.USABLE)
        if current is None:
            return denied("GRANT_MISSING", "it was taken away at this moment")
        if await queries.superseded(work, version) or (version.made_from or current) < current:
            return refused(FAILURE_KIND_TRANSIENT, "VERSION_SUPERSEDED", "a newer version has just come")
        return None

    async def _given(self, work: AsyncConnection, loan: Loan) -> LeaseRow | None:
        """The lease that the holder has for this, where it is good for half of a life or more."""
        lease = await queries.given(work, loan.grant, self.clock.now() + LIFE / 2)
        if lease is None or (loan.version is not None and loan.version.version != lease.version):
            return None
        return lease

    async def _open(self, work: AsyncConnection, loan: Loan, version: VersionRow) -> Mapping[str, bytes]:
        raw = await self._unseal(work, version)
        if version.made_from is None:
            opened = kinds.released(loan.credential.kind, raw)
        else:
            opened = kinds.read_session(raw)
        return {name: content for name, content in opened.items() if name in loan.fields}

    async def _unseal(self, work: AsyncConnection, version: VersionRow) -> bytes:
        """As it is sealed now: the tenant's key may have been replaced since we looked, or even as we look."""
        at = version.holding
        row = await credentials.version(work, at.tenant, at.credential, at.version)
        while row is not None and row.sealed_value is not None:
            try:
                return await self.vault.open(work, at, row.sealed_value, row.key_version)
            except Problem as problem:
                tried = row.key_version
                row = await credentials.version(work, at.tenant, at.credential, at.version)
                if problem.code is not Code.NOT_FOUND or row is None or row.key_version == tried:
                    raise
        raise Problem(Code.NOT_FOUND, what=f"value of {at} any more")

    def _lease(self, loan: Loan, version: VersionRow, beside: Sequence[VersionRow]) -> LeaseRow:
        ends: list[datetime | None] = [self.clock.now() + LIFE, version.expires_at, loan.grant.expires_at]
        return LeaseRow(
            tenant=loan.use.tenant,
            id=self.ids.new("l"),
            credential=loan.credential.id,
            grant_id=loan.grant.id,
            holder=loan.use.holder,
            subject=loan.use.subject,
            slot=loan.use.slot,
            entry=loan.use.entry,
            purpose=loan.use.purpose,
            version=version.version,
            account=loan.grant.account,
            expires_at=min(end for end in ends if end is not None),
            beside=bool(beside),
        )

    async def _record_failures(self, steps: Sequence[Step], answers: Sequence[Outcome]) -> None:
        failed = [
            step.entry(Ending.FAILED, reason=answer.failure.reason)
            for step, answer in zip(steps, answers, strict=True)
            if isinstance(step, Loan) and answer.HasField("failure")
        ]
        if failed:
            await self.recorder.record(*failed)


async def _is_active(work: AsyncConnection, tenant: str) -> bool:
    try:
        await require_active(work, tenant)
    except Problem as problem:
        if problem.code not in (Code.NOT_FOUND, Code.STATE_REFUSES):
            raise
        return False
    return True


def _order(loan: Loan) -> tuple[str, ...]:
    use = loan.use
    return (use.tenant, loan.credential.id, loan.grant.id, use.holder, use.subject, use.slot, use.entry)


def _denials(client: Client, requests: Sequence[Wanted], steps: Sequence[Step]) -> Iterable[Entry]:
    for wanted, step in zip(requests, steps, strict=True):
        if isinstance(step, Loan) or step.failure.kind not in RECORDED:
            continue
        use = use_of(client, wanted)
        if isinstance(use, Use):
            yield _denial(use, step.failure.reason)


def _denial(use: Use, reason: str) -> Entry:
    # A tenant that is not there has no chain, and whoever makes names up must not make chains.
    stranger = reason == "TENANT_NOT_ACTIVE"
    return Entry(
        tenant=PLATFORM if stranger else use.tenant,
        action=ACTION,
        resource=use.subject,
        outcome=Ending.DENIED,
        details={
            "holder": use.holder,
            "slot": use.slot,
            "entry": use.entry,
            "purpose": use.purpose,
            "reason": reason,
        },
    )
