"""The platform's signing keys: one signs, every one that is listed verifies.

A new key is listed before it signs, for longer than anybody keeps the list; an old one stays listed until the
last token that it signed has ended. So no valid token is refused at any moment, whichever replica made it and
whoever reads it. Every replica reads the keys again and again, and once more when a token names one it lacks.

A key is what opens under the root key: its public part is derived from that and read nowhere else. Whoever can
write the database can put a key of their own there, and it verifies nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Self

import structlog
from cryptography.exceptions import InvalidSignature
from joserfc.jwk import OKPKey
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from foundation.identity import Principal, TokenSigner
from foundation.identity.tokens import LEEWAY
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import PLATFORM, Entry
from services.credentials.audit.journal import Journal
from services.credentials.identities.store import signing_keys as queries
from services.credentials.identities.store.signing_keys import SigningKeyRow
from services.credentials.keys.store.copies import Copies
from services.credentials.keys.vault import Vault

log = structlog.get_logger(__name__)

LIFETIME = timedelta(minutes=10)
"""How long an access token of a process or a script is good for: nobody can take it back."""

USER_LIFETIME = timedelta(seconds=25)
"""One of a user who may be disabled: with the verifiers' leeway it ends within a minute of that."""

MAX_AGE = timedelta(minutes=5)
"""How long others keep the list of keys."""

RELOAD = timedelta(seconds=20)
"""How old our own list may become."""

MARGIN = 3 * RELOAD
"""What a new key waits beyond MAX_AGE: a list may have been old already when it was handed out."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    public: OKPKey
    private: OKPKey
    signs_at: datetime


class SigningKeys:
    """A `KeySource` for this service itself, and the JWK set for all others. `async with` keeps it fresh."""

    def __init__(self, clock: Clock, store: Store, vault: Vault, journal: Journal) -> None:
        self._clock = clock
        self._store = store
        self._vault = vault
        self._journal = journal
        self._keys: dict[str, SigningKey] = {}
        self._retired: dict[str, OKPKey] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def key(self, kid: str) -> OKPKey | None:
        found = self._keys.get(kid)
        if found is None:
            # Another replica may have made it a moment ago; whoever asks again finds it.
            self._wanted.set()
            return None
        return found.public

    @property
    def jwks(self) -> bytes:
        public = [key.public.as_dict(private=False) | {"kid": kid} for kid, key in self._keys.items()]
        return json.dumps({"keys": public}).encode()

    def sign(self, principal: Principal, lifetime: timedelta) -> str:
        return TokenSigner(self._present().private, self._clock).sign(principal, lifetime)

    @property
    def newest_kid(self) -> str:
        """The id of the key that signs now."""
        return self._present().kid

    def sign_bytes(self, content: bytes) -> bytes:
        """Ed25519 with that key. What is signed must never look like a token."""
        private = self._present().private
        operation: Any = private.get_op_key("sign")  # of any curve that the library knows; ours is Ed25519
        signature: bytes = operation.sign(content)
        return signature

    def verifies(self, kid: str, content: bytes, signature: bytes) -> bool:
        """Whether a key of ours signed it, one that signs no tokens any more included."""
        known = self._keys.get(kid)
        key = known.public if known else self._retired.get(kid)
        if key is None:
            return False
        public: Any = key.get_op_key("verify")
        try:
            public.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    def _present(self) -> SigningKey:
        """The key that signs now."""
        now = self._clock.now()
        for key in self._keys.values():  # the one that signs last first
            if key.signs_at <= now:
                return key
        raise _unloaded()

    async def check(self) -> None:
        """For readiness."""
        if not self._keys:
            raise _unloaded()

    async def load(self) -> None:
        """Those in the database; the first one is made where there is none."""
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            await queries.lock_signing_keys(work)
            if not await queries.signing_keys(work):
                await self._make(work, self._clock.now())
            keys = await self._open(await queries.signing_keys(work))
            ended = _ended(keys, self._clock.now())
            for kid in ended:
                await queries.retire_signing_key(work, kid)
            retired = await queries.retired_signing_keys(work)
        # Read whole before any of it is believed.
        self._keys = {key.kid: key for key in keys if key.kid not in ended}
        # By the name that the key itself has: a row cannot put another key under the name of one of ours.
        publics = [OKPKey.import_key(json.loads(row.public)) for row in retired]
        self._retired = {public.thumbprint(): public for public in publics}

    async def rotate(self, current_kid: str) -> SigningKeyRow:
        """A new key, which signs once everybody can know it. `current_kid` is no longer the newest: nothing."""
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            await queries.lock_signing_keys(work)
            rows = await queries.signing_keys(work)
            ours = {key.kid for key in await self._open(rows)}
            newest = next(row for row in rows if row.kid in ours)
            if newest.kid == current_kid:
                newest = await self._make(work, self._clock.now() + MAX_AGE + MARGIN)
                details = {"from": current_kid, "to": newest.kid}
                entry = Entry(
                    tenant=PLATFORM, action="signing_key.rotate", resource="signingKeys", details=details
                )
                await self._journal.append(work, entry)
        await self.load()
        return newest

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_fresh(), name="keep signing keys fresh")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep_fresh(self) -> None:
        while True:
            await woken(self._wanted, RELOAD.total_seconds())
            try:
                await self.load()
            except (Problem, StoreError) as error:
                log.info("signing keys are not read anew", why=str(error))
            except Exception:  # a task's border: the keys we have are good for a while yet
                log.exception("signing keys could not be read")
            # Whoever sends nonsense must not make us ask the database each time.
            await asyncio.sleep(0.2)

    async def _make(self, work: AsyncConnection, signs_at: datetime) -> SigningKeyRow:
        made = OKPKey.generate_key("Ed25519")
        kid, public = made.thumbprint(), json.dumps(made.as_dict(private=False)).encode()
        private = json.dumps(made.as_dict(private=True)).encode()
        sealed = await self._vault.seal_for_platform(work, private, "signing key", kid)
        row = SigningKeyRow(kid, public, sealed, signs_at)
        await queries.add_signing_key(work, row)
        return row

    async def _open(self, rows: Sequence[SigningKeyRow]) -> list[SigningKey]:
        """Those of the rows that the root key opens. Where it opens none, its problem is raised."""
        keys: list[SigningKey] = []
        strange: dict[str, Problem] = {}
        for row in rows:
            try:
                keys.append(await self._open_one(row))
            except Problem as problem:
                if problem.code is not Code.SECRET_UNOPENABLE:
                    raise
                strange[row.kid] = problem
        if strange and not keys:
            raise next(iter(strange.values()))
        for kid, why in strange.items():
            log.error("a signing key is not ours and verifies nothing", kid=kid, why=why.sentence)
        return keys

    async def _open_one(self, row: SigningKeyRow) -> SigningKey:
        if (known := self._keys.get(row.kid)) is not None:
            return replace(known, signs_at=row.signs_at)
        copies = Copies(row.sealed_private, row.sealed_other)
        raw = await self._vault.open_for_platform(copies, "signing key", row.kid)
        private = OKPKey.import_key(json.loads(raw))
        public = OKPKey.import_key(private.as_dict(private=False))
        return SigningKey(row.kid, public, private, row.signs_at)


def _ended(keys: Sequence[SigningKey], now: datetime) -> list[str]:
    """Keys whose last token is over: a replica may have signed with one until it read of the next."""
    last_token = LIFETIME + LEEWAY + MARGIN
    return [old.kid for next_one, old in pairwise(keys) if next_one.signs_at + last_token < now]


def _unloaded() -> Problem:
    return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why="its keys are not loaded yet")
