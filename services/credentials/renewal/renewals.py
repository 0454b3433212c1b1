"""Renewal as the rest of the service sees it: each kind by its mechanism, each credential by one flight at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.rpc.deadline import budget
from foundation.store.errors import StoreError
from services.credentials.credential import kinds
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.renewal.asking import (
    Asked,
    Lost,
    Made,
    Refused,
    Trouble,
    Unavailable,
)
from services.credentials.renewal.claims import CONSENT, Busy, Claim, Claims, Want, unusable
from services.credentials.renewal.measuring import RefreshMetrics
from services.credentials.renewal.mechanisms import Mechanisms
from services.credentials.renewal.plain import Plain
from services.credentials.renewal.port import Advice, Answer, Validation
from tieline.common.v1.failure_pb2 import Failure

log = structlog.get_logger(__name__)

PATIENCE = 10.0
"""Seconds that a caller without a deadline of its own waits for a provider."""
LOOK_SECONDS = 0.1
"""Between two looks at what another replica's asking has come to."""
STORE_AGAIN_SECONDS = 0.5
FINISH_SECONDS = 5.0
"""For what is under way when this process ends."""
COME_AGAIN = timedelta(seconds=2)
_PASSING = frozenset({Code.DEPENDENCY_UNAVAILABLE, Code.CONFLICT})


class Renewing:
    """`async with` it: flights that are under way at its end are finished, if they do not take too long."""

    def __init__(
        self,
        claims: Claims,
        plain: Plain,
        ways: Mechanisms,
        *,
        metrics: RefreshMetrics,
        clock: Clock,
    ) -> None:
        self._claims = claims
        self._plain = plain
        self._ways = ways
        self._metrics = metrics
        self._clock = clock
        self._flights: dict[tuple[str, str, str], asyncio.Task[VersionRow]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        under_way = list(self._flights.values())
        if under_way:
            await asyncio.wait(under_way, timeout=FINISH_SECONDS)
        for flight in under_way:
            await end(flight)

    # the port

    async def usable(self, credential: CredentialRow, account: str) -> VersionRow:
        if not self._renews(credential):
            return await self._plain.usable(credential, account)
        want = Want(credential.tenant, credential.id, _account(credential, account))
        return await self._claims.good(want) or await self._newer(want)

    async def renew_now(self, credential: CredentialRow) -> VersionRow:
        if not self._renews(credential):
            return await self._plain.renew_now(credential)
        want = Want(credential.tenant, credential.id)
        present = await self._claims.alive(want)
        return await self._newer(replace(want, newer_than=present.version if present else 0))

    async def validate(self, credential: CredentialRow) -> Validation | None:
        if credential.kind == CONSENT:
            return await self._validate_consent(credential)
        trial = self._ways.trials.get(credential.kind)
        if trial is None or (credential.kind == "SERVICE_ACCOUNT" and not self._renews(credential)):
            return await self._plain.validate(credential)
        try:
            return await trial.validate(Asked(credential, await self._claims.value(credential)))
        except Refused as refused:
            raise unusable(credential, refused.why) from None
        except Trouble as trouble:
            raise _unavailable(credential, trouble.why) from None

    async def refused(self, credential: CredentialRow, version: int, failure: Failure) -> Answer:
        if not self._renews(credential):
            return await self._plain.refused(credential, version, failure)
        account = await self._claims.account_of(credential, version)
        want = Want(credential.tenant, credential.id, account, newer_than=version)
        try:
            await self._newer(want)
        except Problem as problem:
            if problem.code in (Code.CREDENTIAL_UNUSABLE, Code.NOT_FOUND):
                return Answer(Advice.GIVE_UP)
            if problem.code in (Code.CREDENTIAL_REFRESHING, Code.PROVIDER_UNAVAILABLE):
                return Answer(Advice.WAIT, COME_AGAIN)
            raise
        return Answer(Advice.REACQUIRE)

    # what a refresh was cut off from is carried on by whoever finds it

    async def carry_on(self, want: Want) -> None:
        try:
            await self._newer(want)
        except Problem as problem:
            log.info(
                "a refresh that was cut off goes on later", credential=want.credential, why=problem.code.name
            )

    # within

    def _renews(self, credential: CredentialRow) -> bool:
        return credential.kind == CONSENT or kinds.makes_sessions(credential.kind, credential.attributes)

    async def _validate_consent(self, credential: CredentialRow) -> Validation:
        """A refresh is the trial: what came of it is kept, for the old tokens may be gone."""
        await self.renew_now(credential)
        row = await self._claims.credential(credential)
        asked = credential.attributes.get("scopes", "").split()
        granted = row.attributes.get("granted_scopes", " ".join(asked)).split()
        return Validation("", granted, [scope for scope in asked if scope not in granted])

    async def _newer(self, want: Want) -> VersionRow:
        """Join whoever is at it in this process, or begin; each caller waits as long as it has time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + budget(PATIENCE)
        while True:
            flight = self._flights.get(want.key)
            if flight is None:
                flight = asyncio.create_task(self._fly(want), name=f"renew {want.credential}")
                self._flights[want.key] = flight
                flight.add_done_callback(lambda done: self._landed(want, done))
            # The flight is nobody's in particular: a caller that goes away does not end it.
            await asyncio.wait([flight], timeout=max(0.0, until - loop.time()))
            if not flight.done() or flight.cancelled():
                raise Problem(Code.CREDENTIAL_REFRESHING, credential=_name(want))
            version = flight.result()
            if version.version > want.newer_than:
                return version

    def _landed(self, want: Want, flight: asyncio.Task[VersionRow]) -> None:
        del self._flights[want.key]
        if not flight.cancelled():
            flight.exception()  # whoever waited has it; nobody may have

    async def _fly(self, want: Want) -> VersionRow:
        """Until there is something new: asked for by us, or by another replica while we look on."""
        while True:
            taken = await self._claims.take(want)
            if isinstance(taken, VersionRow):
                return taken
            if isinstance(taken, Claim):
                return await self._ask(taken)
            assert isinstance(taken, Busy)  # noqa: S101 - there is no fourth
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self, claim: Claim) -> VersionRow:
        row = claim.asked.credential
        began = self._clock.monotonic()
        try:
            made = await self._made(claim)
        except Trouble as trouble:
            self._metrics.ended(row.kind, type(trouble).__name__.lower(), self._clock.monotonic() - began)
            log.info(
                "no refresh", credential=row.name, outcome=type(trouble).__name__.lower(), why=trouble.why
            )
            await self._claims.give_up(claim, trouble)
            return await self._make_do(claim, trouble)
        version = await self._keep(claim, made)
        outcome = "kept" if version else "superseded"
        self._metrics.ended(row.kind, outcome, self._clock.monotonic() - began)
        if version is None:
            log.warning("a refresh came too late", credential=row.name)
            raise Problem(Code.CREDENTIAL_REFRESHING, credential=row.name)
        return version

    async def _made(self, claim: Claim) -> Made:
        try:
            return await self._ways.renewing[claim.asked.credential.kind].renew(claim.asked)
        except Trouble:
            raise
        except Exception:  # a task's border: whatever it was, the provider may have heard us
            log.exception("a refresh failed", credential=claim.asked.credential.name)
            raise Lost("it failed on our side") from None

    async def _keep(self, claim: Claim, made: Made) -> VersionRow | None:
        """The only copy of what the provider gave is in our hands: a database that is away is waited for."""
        while True:
            try:
                return await self._claims.keep(claim, made)
            except (StoreError, Problem) as error:
                if not isinstance(error, Problem) or error.code not in _PASSING:
                    raise
                log.warning("a refresh waits to be stored", credential=claim.asked.credential.name)
                await asyncio.sleep(STORE_AGAIN_SECONDS)

    async def _make_do(self, claim: Claim, trouble: Trouble) -> VersionRow:
        """What is there may be good for a while yet; otherwise the caller is told what happened."""
        if isinstance(trouble, Refused):
            raise unusable(claim.asked.credential, trouble.why)
        if (alive := await self._claims.alive(claim.want)) is not None:
            return alive
        if isinstance(trouble, Unavailable) or claim.asked.credential.kind != CONSENT:
            raise _unavailable(claim.asked.credential, trouble.why)
        raise Problem(Code.CREDENTIAL_REFRESHING, credential=claim.asked.credential.name)


def _account(credential: CredentialRow, account: str) -> str:
    """Only an app has accounts; another kind's session is the same for every grant."""
    return account if credential.kind == "GITHUB_APP" else ""


def _name(want: Want) -> str:
    return f"tenants/{want.tenant}/credentials/{want.credential}"


def _unavailable(credential: CredentialRow, why: str) -> Problem:
    return Problem(Code.PROVIDER_UNAVAILABLE, provider=f"The provider of {credential.name}", why=why)
