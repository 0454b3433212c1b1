"""Signing keys come and go, and no valid token is refused at any moment."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from joserfc.jwk import OKPKey

from foundation.clock import SteeredClock, SystemClock
from foundation.errors import Code, Problem
from foundation.identity import KeySource, Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.process.testing import until
from foundation.rpc import connect
from foundation.store.opening import open_store
from foundation.store.schemas import CREDENTIALS
from services.credentials.audit.journal import Journal
from services.credentials.identities.signing import LIFETIME, MARGIN, MAX_AGE, RELOAD, SigningKeys
from services.credentials.keys.key_file import KeyFile
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.vault import Vault
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, replica
from tieline.credentials.v1.tenants_pb2 import ListTenantsRequest
from tieline.credentials.v1.tenants_pb2_grpc import TenantServiceStub
from tieline.credentials.v1.tokens_pb2 import GetSigningKeysRequest, RotateSigningKeyRequest

ADA = Principal(Kind.USER, "users/ada", frozenset({Role.VIEWER}))


class Elsewhere:
    """Another service: keeps the list for as long as it may, and looks again no sooner."""

    def __init__(self, source: SigningKeys, clock: SteeredClock) -> None:
        self._source = source
        self._clock = clock
        self._read_at: datetime | None = None
        self._keys: dict[str, OKPKey] = {}

    def key(self, kid: str) -> OKPKey | None:
        return self._keys.get(kid)

    def pass_time(self) -> None:
        now = self._clock.now()
        if self._read_at is None or now - self._read_at >= MAX_AGE:
            self._read_at = now
            listed = [OKPKey.import_key(one) for one in json.loads(self._source.jwks)["keys"]]
            self._keys = {one.thumbprint(): one for one in listed}


class Replica:
    """The signing keys of one process, read anew exactly as late as they may be."""

    def __init__(self, keys: SigningKeys, clock: SteeredClock) -> None:
        self.keys = keys
        self._clock = clock
        self._read_at = clock.now()

    def kid_that_signs(self) -> str:
        head = self.keys.sign(ADA, LIFETIME).partition(".")[0]
        kid: str = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]
        return kid

    async def pass_time(self) -> None:
        if self._clock.now() - self._read_at >= RELOAD:
            self._read_at = self._clock.now()
            await self.keys.load()


@pytest.fixture
async def replicas(
    settings: tuple[CredentialsSettings, str], tmp_path: Path
) -> AsyncIterator[tuple[SteeredClock, list[Replica]]]:
    clock = SteeredClock()
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            store = await stack.enter_async_context(open_store(settings[0].database_url, CREDENTIALS))
            worker = await stack.enter_async_context(open_store(settings[0].worker_database_url, CREDENTIALS))
            roots = RootKeys(KeyFile(tmp_path / "root-key"))
            vault = Vault(roots, store)
            journal = Journal(vault, clock)
            await RootRotation(roots, store, worker, journal).check()
            await journal.load()
            keys = SigningKeys(clock, store, vault, journal)
            await keys.load()
            made.append(Replica(keys, clock))
        yield clock, made


async def test_no_token_is_refused_while_keys_come_and_go(
    replicas: tuple[SteeredClock, list[Replica]],
) -> None:
    clock, both = replicas
    first, second = both
    verifiers = [Elsewhere(one.keys, clock) for one in both]
    step = RELOAD / 2
    rotate_at = {timedelta(minutes=1): first, timedelta(minutes=9): second, timedelta(minutes=30): first}
    last: dict[str, tuple[datetime, str]] = {}  # of each key, the token that ends last
    kids: set[str] = set()
    passed = timedelta()
    while passed < timedelta(minutes=60):
        for one in both:
            await one.pass_time()
        for elsewhere in verifiers:
            elsewhere.pass_time()
        if passed in rotate_at:
            newest = json.loads(first.keys.jwks)["keys"][0]["kid"]
            made = await rotate_at[passed].keys.rotate(newest)
            assert made.signs_at == clock.now() + MAX_AGE + MARGIN
            assert (await second.keys.rotate(newest)).kid == made.kid
        for one in both:
            last[one.kid_that_signs()] = (clock.now() + LIFETIME, one.keys.sign(ADA, LIFETIME))
        alive = [token for end, token in last.values() if end > clock.now()]
        sources: list[KeySource] = [first.keys, second.keys, *verifiers]
        for source in sources:
            for token in alive:
                assert TokenVerifier(source, clock).authenticate(token) == ADA
        kids |= {one["kid"] for one in json.loads(second.keys.jwks)["keys"]}
        await clock.advance(step.total_seconds())
        passed += step
    assert len(kids) == 4
    # All but the last have ended, and a token of one of them is nobody's.
    [left] = json.loads(first.keys.jwks)["keys"]
    assert left["kid"] in kids


async def test_a_key_signs_only_once_everybody_can_know_it(
    replicas: tuple[SteeredClock, list[Replica]],
) -> None:
    clock, (first, second) = replicas
    old = first.kid_that_signs()
    made = await first.keys.rotate(old)
    await second.keys.load()
    wait = (MAX_AGE + MARGIN).total_seconds()
    await clock.advance(wait - 1)
    assert {first.kid_that_signs(), second.kid_that_signs()} == {old}
    await clock.advance(1)
    assert {first.kid_that_signs(), second.kid_that_signs()} == {made.kid}


async def test_a_key_that_is_not_known_is_looked_for_at_once(
    replicas: tuple[SteeredClock, list[Replica]],
) -> None:
    _, (first, second) = replicas
    async with second.keys:
        made = await first.keys.rotate(first.kid_that_signs())
        # Sooner than it would read them again by itself.
        await until(lambda: second.keys.key(made.kid) is not None, RELOAD.total_seconds() - 5)


async def test_without_its_keys_nothing_is_signed_or_listed(
    settings: tuple[CredentialsSettings, str],
) -> None:
    async with open_store(settings[0].database_url, CREDENTIALS) as store:
        clock = SteeredClock()
        vault = Vault(RootKeys(KeyFile(Path(settings[0].root_key_file or ""))), store)
        keys = SigningKeys(clock, store, vault, Journal(vault, clock))
        with pytest.raises(Problem, match="not loaded yet"):
            keys.sign(ADA, LIFETIME)
        with pytest.raises(Problem, match="not loaded yet"):
            await keys.check()


async def test_rotating_by_request_holds_in_every_replica(running: Running, admin: Client) -> None:
    async with replica(running) as second:
        elsewhere = await second.as_("tl_admin")

        async def listed(client: Client) -> list[str]:
            answer = await client.tokens.GetSigningKeys(GetSigningKeysRequest())
            return [one["kid"] for one in json.loads(answer.jwks)["keys"]]

        [old] = await listed(admin)
        request = RotateSigningKeyRequest(current_kid=old)
        made = await admin.tokens.RotateSigningKey(request)
        assert await elsewhere.tokens.RotateSigningKey(request) == made
        wait = made.sign_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
        assert MAX_AGE < wait <= MAX_AGE + MARGIN
        for client in (admin, elsewhere):
            assert await listed(client) == [made.kid, old]
            await client.tenants.ListTenants(ListTenantsRequest())
        rows = await running.sql(
            "select resource from credentials.audit_records where action = 'signing_key.rotate'"
        )
        assert len(rows) == 1


async def test_a_key_that_somebody_wrote_into_the_database_verifies_nothing(running: Running) -> None:
    """As superuser: a row with a public key of one's own, and one's own key in the row of the real one."""
    mine = OKPKey.generate_key("Ed25519")
    public = json.dumps(mine.as_dict(private=False)).encode()
    await running.sql(
        """insert into credentials.signing_keys (kid, public, sealed_private, signs_at)
           select $1, $2, sealed_private, now() - interval '1 hour' from credentials.signing_keys limit 1""",
        mine.thumbprint(),
        public,
    )
    await running.sql("update credentials.signing_keys set public = $1", public)
    forged = TokenSigner(mine, SystemClock()).sign(
        Principal(Kind.USER, "users/admin", frozenset({Role.PLATFORM_ADMIN})), LIFETIME
    )

    async def present() -> str:
        return forged

    async with replica(running) as second, connect(second.address, present) as channel:
        with pytest.raises(Problem) as refused:
            await TenantServiceStub(channel).ListTenants(ListTenantsRequest())
        assert refused.value.code is Code.TOKEN_INVALID
        admin = await second.as_("tl_admin")
        listed = json.loads((await admin.tokens.GetSigningKeys(GetSigningKeysRequest())).jwks)
        assert mine.thumbprint() not in {one["kid"] for one in listed["keys"]}
        assert OKPKey.import_key(listed["keys"][0]).thumbprint() != mine.thumbprint()
        # The real one signs and is believed as before.
        await admin.tenants.ListTenants(ListTenantsRequest())
        # And it can still be replaced: the stranger's row stands for nothing.
        [kid] = [one["kid"] for one in listed["keys"]]
        made = await admin.tokens.RotateSigningKey(RotateSigningKeyRequest(current_kid=kid))
        assert made.kid not in (kid, mine.thumbprint())


async def test_a_retired_key_verifies_only_by_its_own_name(
    replicas: tuple[SteeredClock, list[Replica]], settings: tuple[CredentialsSettings, str]
) -> None:
    _, (first, _) = replicas
    mine = OKPKey.generate_key("Ed25519")
    connection = await asyncpg.connect(settings[1])
    await connection.execute(
        "insert into credentials.retired_signing_keys (kid, public) values ('ours once', $1)",
        json.dumps(mine.as_dict(private=False)).encode(),
    )
    await connection.close()
    await first.keys.load()
    signature = mine.get_op_key("sign").sign(b"a checkpoint")  # type: ignore[union-attr]
    assert not first.keys.verifies("ours once", b"a checkpoint", signature)
