"""Who asks the provider, and what becomes of the answer: one asks, however many processes want to.

    take      one transaction: the row says that we ask, from which version, until when, under which generation
    ask       no transaction, no lock: the provider takes as long as it takes
    settle    one transaction: the answer is stored, if the generation is still ours and the version still in use

Where a provider rotates refresh tokens, its answer and our commit cannot be one thing: a process that dies in
between takes the only good token with it. So the row that says "asking" is durable before the request leaves.
A claim that runs out without a word puts the credential into REFRESH_UNKNOWN, where everybody can see it, and
the old token is tried again. Providers that do not rotate, or forgive a repetition, answer that, and all is
well; the others say that the consent has ended, and a person is asked for it, once. No way ends in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Actor, Entry, Outcome
from services.credentials.audit.journal import Journal
from services.credentials.credential import kinds, renewing, states
from services.credentials.credential import store as credentials
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.keys.vault import Holding, Vault
from services.credentials.leases import store as leases
from services.credentials.renewal import store as queries
from services.credentials.renewal.asking import Asked, Lost, Made, Refused, Trouble, Unavailable
from services.credentials.renewal.store import RefreshRow
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1.secrets_pb2 import SecretValue

CLAIM = timedelta(seconds=30)
"""Longer than a provider may take, so that it runs out only for who is gone."""
OVERLAP = timedelta(minutes=5)
"""How long the tokens before a refresh are kept."""
UNKNOWN_LIFE = timedelta(hours=1)
"""Of a session whose end the provider does not tell."""
PAUSE, LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=5)
REFUSED_PAUSE = timedelta(minutes=1)
MYSELF = Actor("services/credentials")
CONSENT = "OAUTH2_AUTHORIZATION_CODE"
GONE = frozenset({"REVOKED", "REFUSED", "REAUTHORISATION_REQUIRED"})
"""States in which no provider is asked: a person has to act first."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a caller needs: something for this account that is newer than what it has."""

    tenant: str
    credential: str
    account: str = ""
    newer_than: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant, self.credential, self.account)


@dataclass(frozen=True, slots=True)
class Claim:
    """Ours to ask, until the generation is somebody else's."""

    want: Want
    asked: Asked = field(repr=False)
    generation: int

    @property
    def version(self) -> int:
        return self.asked.credential.current_version


class Busy:
    """Somebody else asks."""


class Claims:
    def __init__(self, store: Store, vault: Vault, journal: Journal, clock: Clock) -> None:
        self._store = store
        self._vault = vault
        self._journal = journal
        self._clock = clock

    async def good(self, want: Want) -> VersionRow | None:
        """What there is, if it is new enough and good for a while yet."""
        async with self._store.unit_of_work(tenants=[want.tenant], read_only=True) as work:
            row = _usable(await self._credential(work, want))
            version = await self._present(work, row, want.account)
        return version if version and self._is_good(version, want) else None

    async def alive(self, want: Want) -> VersionRow | None:
        """What there is, if it is new enough and not over: better than nothing where nothing newer can be had."""
        async with self._store.unit_of_work(tenants=[want.tenant], read_only=True) as work:
            row = _usable(await self._credential(work, want))
            version = await self._present(work, row, want.account)
        if version is None or version.version <= want.newer_than:
            return None
        return version if version.expires_at is None or version.expires_at > self._clock.now() else None

    async def value(self, credential: CredentialRow) -> SecretValue:
        """The value in use, opened."""
        async with self._store.unit_of_work(tenants=[credential.tenant], read_only=True) as work:
            return await self._open(work, credential)

    async def credential(self, known: CredentialRow) -> CredentialRow:
        """As it is now."""
        async with self._store.unit_of_work(tenants=[known.tenant], read_only=True) as work:
            return await credentials.credential(work, known.tenant, known.id) or known

    async def account_of(self, credential: CredentialRow, version: int) -> str:
        async with self._store.unit_of_work(tenants=[credential.tenant], read_only=True) as work:
            return await queries.account_of(work, credential.tenant, credential.id, version)

    async def take(self, want: Want) -> Claim | VersionRow | Busy:
        now = self._clock.now()
        async with self._store.unit_of_work(tenants=[want.tenant]) as work:
            row = _usable(await self._credential(work, want, locked=True))
            version = await self._present(work, row, want.account)
            refresh = await queries.lock_refresh(work, *want.key)
            same = refresh.made_from == row.current_version
            # A good access token says nothing about the refresh token beside it.
            doubt = row.kind == CONSENT and ((refresh.asking and same) or row.state == "REFRESH_UNKNOWN")
            if version and self._is_good(version, want) and not doubt:
                return version
            if refresh.asking and refresh.claimed_until and refresh.claimed_until > now:
                return Busy()
            if same and refresh.not_before is not None and refresh.not_before > now:
                if refresh.refused:
                    raise unusable(row, refresh.why)
                raise Problem(
                    Code.PROVIDER_UNAVAILABLE, provider=f"The provider of {row.name}", why=refresh.why
                )
            value = await self._open(work, row)
            claimed = replace(
                refresh,
                generation=refresh.generation + 1,
                asking=True,
                claimed_until=now + CLAIM,
                made_from=row.current_version,
                failures=refresh.failures if same else 0,
                not_before=None,
            )
            await queries.put_refresh(work, claimed)
            if refresh.asking and doubt:
                why = "a refresh was cut off before its outcome was stored; the old token is tried again"
                row = await self._in_doubt(work, row, why)
        return Claim(want, Asked(row, value, want.account), claimed.generation)

    async def keep(self, claim: Claim, made: Made) -> VersionRow | None:
        """The new version or session; None where the claim is not ours any more or the value was replaced."""
        async with self._store.unit_of_work(tenants=[claim.want.tenant]) as work:
            row = await self._settled(work, claim)
            if row is None:
                return None
            if kinds.makes_sessions(row.kind, row.attributes):
                version = await self._add(work, row, claim, made, "session")
            else:
                version = await self._replace(work, row, claim, made)
            await leases.outdate(work, row.tenant, row.id, version.version, version.account)
            now = self._clock.now()
            await credentials.note_validation(work, row, "", now)
            if row.state != "EXPIRING":
                await states.enter(work, row, "VALID", now=now)
            if version.made_from is None:
                await credentials.note_change(work)
            await self._record(work, row, "credential.refresh", version=str(version.version))
        return version

    async def give_up(self, claim: Claim, trouble: Trouble) -> None:
        """What went wrong is stored; whoever comes next finds it."""
        async with self._store.unit_of_work(tenants=[claim.want.tenant]) as work:
            row = await self._settled(work, claim, trouble)
            if row is None:
                return
            if isinstance(trouble, Lost) and row.kind == CONSENT:
                await self._in_doubt(work, row, trouble.why)
            elif isinstance(trouble, Refused):
                if not trouble.account_only:
                    await self._refused(work, row, trouble)
                await self._record(work, row, "credential.refresh", Outcome.FAILED, reason="refused")

    # within a transaction

    async def _credential(
        self, work: AsyncConnection, want: Want, *, locked: bool = False
    ) -> CredentialRow | None:
        return await credentials.credential(work, want.tenant, want.credential, locked=locked)

    async def _present(self, work: AsyncConnection, row: CredentialRow, account: str) -> VersionRow | None:
        """The newest there is for the account; of a consent, only if there is anything to call with."""
        if kinds.makes_sessions(row.kind, row.attributes):
            return await queries.newest_session(work, row.tenant, row.id, row.current_version, account)
        version = await credentials.version(work, row.tenant, row.id, row.current_version)
        if version is None or version.sealed_value is None:
            return None
        value = await self._open(work, row, version)
        return version if value.oauth2_authorization_code.access_token else None

    async def _open(
        self, work: AsyncConnection, row: CredentialRow, version: VersionRow | None = None
    ) -> SecretValue:
        found = version or await credentials.version(work, row.tenant, row.id, row.current_version)
        if found is None or found.sealed_value is None:
            raise unusable(row, "its version is destroyed")
        return SecretValue.FromString(
            await self._vault.open(work, found.holding, found.sealed_value, found.key_version)
        )

    def _is_good(self, version: VersionRow, want: Want) -> bool:
        if version.version <= want.newer_than:
            return False
        now, began = self._clock.now(), version.created_at
        if version.expires_at is None:
            return version.made_from is None or began is None or now < began + UNKNOWN_LIFE
        life = version.expires_at - began if began else renewing.MARGIN
        return now < version.expires_at - margin(life)

    async def _settled(
        self, work: AsyncConnection, claim: Claim, trouble: Trouble | None = None
    ) -> CredentialRow | None:
        """Nobody asks any more; the credential, if what was asked for still says something about it."""
        row = await self._credential(work, claim.want, locked=True)
        refresh = await queries.lock_refresh(work, *claim.want.key) if row else None
        if row is None or refresh is None or refresh.generation != claim.generation:
            return None
        await queries.put_refresh(work, self._after(refresh, trouble))
        return row if row.current_version == claim.version and row.state != "REVOKED" else None

    def _after(self, refresh: RefreshRow, trouble: Trouble | None) -> RefreshRow:
        done = replace(refresh, asking=False, claimed_until=None)
        if trouble is None:
            return replace(done, failures=0, not_before=None, why="", refused=False)
        failures = min(refresh.failures + 1, 30)
        pause = min(PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE)
        if isinstance(trouble, Unavailable):
            pause = max(pause, trouble.retry_after)
        elif isinstance(trouble, Refused):
            pause = REFUSED_PAUSE
        return replace(
            done,
            failures=failures,
            not_before=self._clock.now() + pause,
            why=trouble.why,
            refused=isinstance(trouble, Refused),
        )

    async def _add(
        self, work: AsyncConnection, row: CredentialRow, claim: Claim, made: Made, author: str
    ) -> VersionRow:
        number = await credentials.next_version(work, row.tenant, row.id)
        is_session = author == "session"
        sealed, key_version = await self._vault.seal(work, Holding(row.tenant, row.id, number), made.plain)
        version = VersionRow(
            tenant=row.tenant,
            credential=row.id,
            version=number,
            key_version=key_version,
            author=author,
            wrapped_key=sealed.wrapped_key,
            sealed=sealed.value,
            made_from=row.current_version if is_session else None,
            account=claim.want.account,
            expires_at=made.expires_at,
        )
        await credentials.add_version(work, version)
        return version

    async def _replace(
        self, work: AsyncConnection, row: CredentialRow, claim: Claim, made: Made
    ) -> VersionRow:
        version = await self._add(work, row, claim, made, "refresh")
        await put_in_use(work, row, version, made, self._clock.now())
        return version

    async def _in_doubt(self, work: AsyncConnection, row: CredentialRow, why: str) -> CredentialRow:
        failure = Failure(kind=FAILURE_KIND_AUTH_FAILED, reason="REFRESH_UNKNOWN", message=why)
        entered = await states.enter(work, row, "REFRESH_UNKNOWN", failure, now=self._clock.now())
        await self._record(work, row, "credential.refresh", Outcome.FAILED, reason="unknown")
        return entered

    async def _refused(self, work: AsyncConnection, row: CredentialRow, refused: Refused) -> None:
        state = "REAUTHORISATION_REQUIRED" if refused.consent and row.kind == CONSENT else "REFUSED"
        failure = Failure(kind=FAILURE_KIND_AUTH_FAILED, reason=state, message=refused.why)
        await states.enter(work, row, state, failure, now=self._clock.now())

    async def _record(
        self,
        work: AsyncConnection,
        row: CredentialRow,
        action: str,
        outcome: Outcome = Outcome.DONE,
        **details: str,
    ) -> None:
        entry = Entry(
            tenant=row.tenant,
            action=action,
            resource=row.name,
            outcome=outcome,
            details=details,
            actor=MYSELF,
        )
        await self._journal.append(work, entry)


def margin(life: timedelta) -> timedelta:
    """How long before its end something newer is wanted."""
    return min(renewing.MARGIN / 2, life / 10)


async def put_in_use(
    work: AsyncConnection, row: CredentialRow, version: VersionRow, made: Made, now: datetime
) -> None:
    """The tokens of this version are the credential's from now on; the ones before are kept a little longer."""
    shown = dict(row.attributes)
    if made.scopes is not None:
        shown["granted_scopes"] = " ".join(made.scopes)
    renewed = replace(
        row,
        current_version=version.version,
        expires_at=made.expires_at,
        attributes=shown,
        renews_at=renewing.next_time(row.kind, renewing.of(row), now, made.expires_at),
    )
    await credentials.put_version_in_use(work, renewed, now + OVERLAP)


def unusable(row: CredentialRow, why: str) -> Problem:
    return Problem(Code.CREDENTIAL_UNUSABLE, credential=row.name, why=why)


def _usable(row: CredentialRow | None) -> CredentialRow:
    if row is None:
        raise Problem(Code.NOT_FOUND, what="such credential any more")
    if row.state in GONE:
        known = str((row.failure or {}).get("message") or f"it is {row.state.lower().replace('_', ' ')}")
        raise unusable(row, known)
    return row
