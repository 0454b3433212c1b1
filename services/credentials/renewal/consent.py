"""A person's consent, from "connect" to stored tokens (RFC 6749 §4.1 with PKCE, RFC 7636).

    start      an administrator wants it; what comes back is a ticket, good once, for whoever is to consent
    open       a browser brings the ticket and is remembered; the state that the provider will bring back is made
    complete   the same browser brings state and code; the code becomes tokens, the tokens a version

Ticket, state and the browser's binding stand in the database by their hashes, the verifier sealed under the
tenant's key. They live for ten minutes: if that key version is retired meanwhile, the person starts anew. The
redirect URI is one, exactly, for every provider and credential.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.rpc.call import author
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Actor, Entry, Outcome
from services.credentials.audit.journal import Journal
from services.credentials.credential import states
from services.credentials.credential import store as credentials
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.identities.standing import require_active
from services.credentials.keys.vault import Holding, Vault
from services.credentials.leases import store as leases
from services.credentials.renewal import store as queries
from services.credentials.renewal.asking import Made, Refused, Trouble
from services.credentials.renewal.claims import CONSENT, put_in_use, unusable
from services.credentials.renewal.oauth_code import OauthCode
from services.credentials.renewal.store import ConsentRow
from tieline.credentials.v1.secrets_pb2 import Oauth2AuthorizationCode, SecretValue

LIFE = timedelta(minutes=10)
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Opened:
    provider_url: str
    browser: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Returned:
    """What the browser came back with."""

    state: str
    code: str
    browser: str
    error: str

    def __repr__(self) -> str:
        return "Returned(…)"


class Consents:
    def __init__(
        self,
        store: Store,
        worker: Store,
        vault: Vault,
        journal: Journal,
        *,
        oauth: OauthCode,
        clock: Clock,
        public_url: str,
    ) -> None:
        self._store = store
        self._worker = worker
        self._vault = vault
        self._journal = journal
        self._oauth = oauth
        self._clock = clock
        self._public_url = public_url.rstrip("/")

    @property
    def redirect_uri(self) -> str:
        return f"{self._public_url}/oauth/callback"

    async def start(self, tenant: str, credential: str, return_path: str) -> tuple[str, datetime]:
        """The page of ours that leads to the provider's, and until when it does."""
        _demand_path(return_path)
        ticket, now = secrets.token_urlsafe(32), self._clock.now()
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._consentable(work, tenant, credential)
            await queries.forget_consents(work, tenant, now)
            verifier = secrets.token_urlsafe(48).encode()
            sealed, key_version = await self._vault.seal(work, _place(tenant, digest(ticket)), verifier)
            consent = ConsentRow(
                tenant=tenant,
                ticket=digest(ticket),
                credential=credential,
                return_path=return_path,
                author=author(),
                wrapped_key=sealed.wrapped_key,
                sealed=sealed.value,
                key_version=key_version,
                expires_at=now + LIFE,
            )
            await queries.add_consent(work, consent)
            await self._record(work, row, "credential.authorise_start")
        return f"{self._public_url}/oauth/start?{urlencode({'ticket': ticket})}", consent.expires_at

    async def open(self, ticket: str) -> Opened:
        state, browser = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        tenant = await self._tenant_of("ticket", ticket)
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            consent = await queries.lock_consent(work, tenant, "ticket", digest(ticket))
            if consent is None or consent.state is not None or consent.expires_at <= self._clock.now():
                raise _unknown("ticket")
            row = await self._consentable(work, tenant, consent.credential)
            part, verifier = await self._part(work, row), await self._verifier(work, consent)
            bound = replace(consent, state=digest(state), browser=digest(browser))
            await queries.put_consent(work, bound)
        return Opened(self._provider_url(part, state, verifier), browser, consent.expires_at)

    async def complete(self, returned: Returned) -> tuple[CredentialRow, str]:
        """The credential with its new version, and where the browser goes. The state is used up by this."""
        consent, row, part, verifier = await self._use(returned)
        if returned.error or not returned.code:
            raise unusable(row, f"no consent was given ({_plain(returned.error)})")
        try:
            made = await self._oauth.exchange(part, returned.code, verifier, self.redirect_uri)
        except Refused as refused:
            raise unusable(row, f"the consent did not succeed: {refused.why}") from None
        except Trouble as trouble:
            provider = f"The provider of {row.name}"
            raise Problem(Code.PROVIDER_UNAVAILABLE, provider=provider, why=trouble.why) from None
        return await self._keep(consent, row, made), consent.return_path

    async def _use(
        self, returned: Returned
    ) -> tuple[ConsentRow, CredentialRow, Oauth2AuthorizationCode, str]:
        tenant = await self._tenant_of("state", returned.state)
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            consent = await queries.lock_consent(work, tenant, "state", digest(returned.state))
            if consent is None or consent.used_at or consent.expires_at <= self._clock.now():
                raise _unknown("state")
            # Another browser uses nothing up: the one that began may still end.
            if not hmac.compare_digest(consent.browser or b"", digest(returned.browser)):
                raise _unknown("browser_binding")
            row = await self._consentable(work, tenant, consent.credential)
            part, verifier = await self._part(work, row), await self._verifier(work, consent)
            await queries.put_consent(work, replace(consent, used_at=self._clock.now()))
            if returned.error or not returned.code:
                await self._record(work, row, "credential.authorise", consent.author, Outcome.DENIED)
        return consent, row, part, verifier

    async def _keep(self, consent: ConsentRow, asked: CredentialRow, made: Made) -> CredentialRow:
        now = self._clock.now()
        async with self._store.unit_of_work(tenants=[consent.tenant]) as work:
            row = await self._consentable(work, consent.tenant, consent.credential)
            if (row.created_at, row.kind) != (asked.created_at, asked.kind):
                raise _unknown("state")
            number = await credentials.next_version(work, row.tenant, row.id)
            sealed, key_version = await self._vault.seal(
                work, Holding(row.tenant, row.id, number), made.plain
            )
            version = VersionRow(
                tenant=row.tenant,
                credential=row.id,
                version=number,
                key_version=key_version,
                author=consent.author,
                wrapped_key=sealed.wrapped_key,
                sealed=sealed.value,
                expires_at=made.expires_at,
            )
            await put_in_use(work, row, version, made, now)
            await credentials.add_version(work, version)
            await leases.outdate(work, row.tenant, row.id, number)
            await credentials.note_validation(work, row, "", now)
            await states.enter(work, row, "VALID", now=now)
            await credentials.note_change(work)
            await self._record(work, row, "credential.authorise", consent.author, version=str(number))
            return await credentials.credential(work, row.tenant, row.id) or row

    # within a transaction

    async def _consentable(self, work: AsyncConnection, tenant: str, credential: str) -> CredentialRow:
        await require_active(work, tenant)
        row = await credentials.credential(work, tenant, credential, locked=True)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"tenants/{tenant}/credentials/{credential}")
        if row.kind != CONSENT:
            why = "only an oauth2_authorization_code is consented to"
            raise Problem(Code.INVALID_ARGUMENT, field="credential", why=why)
        if row.state == "REVOKED":
            why = "it was revoked, which is for good; create another one"
            raise Problem(Code.STATE_REFUSES, what=row.name, wanted="authorised", why=why)
        return row

    async def _part(self, work: AsyncConnection, row: CredentialRow) -> Oauth2AuthorizationCode:
        version = await credentials.version(work, row.tenant, row.id, row.current_version)
        if version is None or version.sealed_value is None:
            raise unusable(row, "its version is destroyed")
        plain = await self._vault.open(work, version.holding, version.sealed_value, version.key_version)
        return SecretValue.FromString(plain).oauth2_authorization_code

    async def _verifier(self, work: AsyncConnection, consent: ConsentRow) -> str:
        where = _place(consent.tenant, consent.ticket)
        try:
            plain = await self._vault.open(work, where, consent.sealed_verifier, consent.key_version)
        except Problem as problem:
            if problem.code is not Code.NOT_FOUND:
                raise
            raise _unknown("ticket") from None  # its key version was retired meanwhile
        return plain.decode()

    async def _record(
        self,
        work: AsyncConnection,
        row: CredentialRow,
        action: str,
        for_: str = "",
        outcome: Outcome = Outcome.DONE,
        **details: str,
    ) -> None:
        """The gateway brings the browser's answer; whoever began is whose act it is."""
        present = Actor.present()
        actor = Actor(present.principal, for_) if for_ else present
        entry = Entry(
            tenant=row.tenant, action=action, resource=row.name, outcome=outcome, details=details, actor=actor
        )
        await self._journal.append(work, entry)

    async def _tenant_of(self, by: str, secret: str) -> str:
        async with self._worker.across_tenants() as work:
            tenants = await queries.tenants_of(work, by, digest(secret))
        if not tenants:
            raise _unknown(by)
        return tenants[0]

    def _provider_url(self, part: Oauth2AuthorizationCode, state: str, verifier: str) -> str:
        """The provider's page; what the credential's URL says already stays, what is ours is said once."""
        ours: Mapping[str, str] = {
            "response_type": "code",
            "client_id": part.client_id,
            "redirect_uri": self.redirect_uri,
            "state": state,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        } | ({"scope": " ".join(part.scopes)} if part.scopes else {})
        url = urlsplit(part.authorization_url)
        theirs = [(name, text) for name, text in parse_qsl(url.query) if name not in ours]
        return urlunsplit(url._replace(query=urlencode([*theirs, *ours.items()]), fragment=""))


def challenge(verifier: str) -> str:
    """RFC 7636 §4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _place(tenant: str, ticket: bytes) -> Holding:
    """No credential has such an id, so a verifier opens nowhere else, and nothing else opens as one."""
    return Holding(tenant, f"consent {ticket.hex()}", 0)


def _demand_path(path: str) -> None:
    """On our own site and nowhere else: browsers read `//host` as another site, and a backslash as a slash."""
    fine = path == "" or (re.fullmatch(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", path) and len(path) <= _LONGEST)
    if not fine:
        raise Problem(Code.INVALID_ARGUMENT, field="return_path", why="it is not a path on our own site: /…")


def _unknown(field: str) -> Problem:
    """One answer for what never was, was used, is over or belongs to another browser."""
    return Problem(Code.INVALID_ARGUMENT, field=field, why="it is unknown, used or too old: begin anew")


def _plain(error: str) -> str:
    return error if re.fullmatch(r"[a-z_]{1,40}", error) else "the provider gave no code"
