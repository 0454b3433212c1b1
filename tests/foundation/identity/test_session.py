"""A caller's own token and the platform's keys, against a credentials service that comes and goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from joserfc.jwk import OKPKey
from opentelemetry import trace

from foundation.clock import NumberedIds, SteeredClock
from foundation.errors import Code, Problem
from foundation.identity import NoKeys, TokenVerifier
from foundation.identity.keys import RemoteKeys
from foundation.identity.session import Session, read_token
from foundation.rpc import RpcServer, connect
from foundation.settings import Address
from foundation.telemetry import Metrics
from tieline.credentials.v1 import tokens_pb2, tokens_pb2_grpc

KEY = OKPKey.generate_key("Ed25519")


@dataclass
class Tokens(tokens_pb2_grpc.TokenServiceServicer):
    clock: SteeredClock
    keys: list[OKPKey] = field(default_factory=lambda: [KEY])
    exchanged: int = 0
    away: bool = False
    hold: asyncio.Event | None = None

    async def ExchangeToken(self, request: Any, context: Any) -> tokens_pb2.ExchangeTokenResponse:  # noqa: ARG002, N802
        self.exchanged += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.away:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why="it is away")
        answer = tokens_pb2.ExchangeTokenResponse(access_token=f"access-{self.exchanged}")
        answer.expire_time.FromDatetime(self.clock.now() + timedelta(minutes=10))
        return answer

    async def GetSigningKeys(self, request: Any, context: Any) -> tokens_pb2.GetSigningKeysResponse:  # noqa: ARG002, N802
        if self.away:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why="it is away")
        public = [key.as_dict(private=False) for key in self.keys]
        return tokens_pb2.GetSigningKeysResponse(
            jwks=json.dumps({"keys": public}).encode(), max_age=Duration(seconds=3600)
        )


@dataclass
class Vault:
    tokens: Tokens
    clock: SteeredClock
    channel: Any


@pytest.fixture
async def vault() -> AsyncIterator[Vault]:
    clock = SteeredClock()
    tokens = Tokens(clock)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(NoKeys(), clock),
        metrics=Metrics("vault"),
        tracer=trace.NoOpTracer(),
        ids=NumberedIds(),
        drain=0,
    )
    server.add(tokens_pb2_grpc.add_TokenServiceServicer_to_server, tokens)
    async with server, connect(str(server.address)) as channel:
        yield Vault(tokens, clock, channel)


async def test_a_token_is_exchanged_once_and_renewed_at_half_its_life(vault: Vault) -> None:
    session = Session(vault.channel, "tl_x", vault.clock)
    assert [await session.token() for _ in range(3)] == ["access-1"] * 3
    await vault.clock.advance(299)
    assert await session.token() == "access-1"
    await vault.clock.advance(2)
    assert await session.token() == "access-2"


async def test_many_who_need_one_wait_for_one_exchange(vault: Vault) -> None:
    vault.tokens.hold = asyncio.Event()
    session = Session(vault.channel, "tl_x", vault.clock)
    waiting = [asyncio.create_task(session.token()) for _ in range(20)]
    async with asyncio.timeout(30):
        while vault.tokens.exchanged == 0:
            await asyncio.sleep(0.01)
    vault.tokens.hold.set()
    assert set(await asyncio.gather(*waiting)) == {"access-1"}


async def test_the_second_half_of_its_life_survives_an_outage_and_not_more(vault: Vault) -> None:
    session = Session(vault.channel, "tl_x", vault.clock)
    await session.token()
    vault.tokens.away = True
    await vault.clock.advance(400)
    assert await session.token() == "access-1"
    await vault.clock.advance(201)
    with pytest.raises(Problem) as refused:
        await session.token()
    assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE


async def test_keys_are_trusted_when_told_and_new_ones_are_found_soon(vault: Vault) -> None:
    vault.tokens.away = True
    async with RemoteKeys(vault.channel) as keys:
        assert keys.key(KEY.thumbprint()) is None
        with pytest.raises(Problem, match="signing keys are not known yet"):
            await keys.check()
        vault.tokens.away = False
        await _found(keys, KEY)
        await keys.check()
        added = OKPKey.generate_key("Ed25519")
        vault.tokens.keys.append(added)
        await _found(keys, added)
        vault.tokens.keys.clear()
        assert keys.key("unknown") is None
        await asyncio.sleep(0.5)  # an answer without keys takes none away
        assert keys.key(KEY.thumbprint()) is not None


async def _found(keys: RemoteKeys, key: OKPKey) -> None:
    async with asyncio.timeout(30):
        while keys.key(key.thumbprint()) is None:
            await asyncio.sleep(0.02)


def test_a_token_file_is_private_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(Problem, match="No such file"):
        read_token(str(path))
    path.touch(mode=0o600)
    path.write_text("tl_x\n")
    assert read_token(str(path)) == "tl_x"
    path.chmod(0o644)
    with pytest.raises(Problem, match="can be read by others"):
        read_token(str(path))
