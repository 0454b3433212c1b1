"""Secrets that are borrowed: asked for together, renewed in time, and never held longer than lent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest

from foundation.clock import SteeredClock
from foundation.errors import Problem
from foundation.leasing import Borrowed, Held, Place
from foundation.process.testing import until
from foundation.rpc import connect
from tieline.common.v1.failure_pb2 import FAILURE_KIND_PERMISSION_DENIED, FAILURE_KIND_TRANSIENT, Failure
from tieline.credentials.v1 import leases_pb2, leases_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL

# ruff: noqa: N802  the contract's names

LIFE = 3600.0


@dataclass
class Vault(leases_pb2_grpc.LeaseServiceServicer):
    clock: SteeredClock
    version: int = 1
    refusal: Failure | None = None
    asked: list[int] = field(default_factory=list)
    """How many at a time."""

    async def AcquireLeases(self, request: Any, _: Any) -> leases_pb2.AcquireLeasesResponse:
        self.asked.append(len(request.requests))
        answer = leases_pb2.AcquireLeasesResponse()
        for one in request.requests:
            outcome = answer.outcomes.add()
            if self.refusal is not None:
                outcome.failure.CopyFrom(self.refusal)
                continue
            outcome.secret.fields["token"] = f"{one.entry}-{self.version}".encode()
            lease = outcome.secret.lease
            lease.name = f"tenants/acme/credentials/{one.entry}/leases/{self.version}"
            lease.version.version = self.version
            lease.expire_time.FromDatetime(self.clock.now() + timedelta(seconds=LIFE))
        return answer


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []

    def renewed(self, place: Place, held: Held) -> None:
        self.said.append(f"{place.entry} renewed {held.secret.lease.version.version}")

    def lost(self, place: Place, held: Held) -> None:
        self.said.append(f"{place.entry} lost {held.secret.lease.version.version}")


@dataclass
class Desk:
    clock: SteeredClock
    vault: Vault
    server: grpc.aio.Server
    heard: Heard
    borrowed: Borrowed

    async def tokens(self, *entries: str) -> list[bytes]:
        held = await self.borrowed.get([place(entry) for entry in entries])
        return [one.secret.fields["token"] for one in held]


def place(entry: str) -> Place:
    return Place(subject="tenants/acme/connections/c", slot="api", entry=entry, purpose=PURPOSE_CALL)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    clock, heard = SteeredClock(), Heard()
    vault = Vault(clock)  # type: ignore[abstract]  # it lends, and no more
    server = grpc.aio.server()
    leases_pb2_grpc.add_LeaseServiceServicer_to_server(vault, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as channel, Borrowed(channel, clock, heard) as borrowed:
            yield Desk(clock, vault, server, heard, borrowed)
    finally:
        await server.stop(0)


async def test_all_that_is_missing_is_asked_for_in_as_few_questions_as_there_can_be(desk: Desk) -> None:
    entries = [str(number) for number in range(1200)]
    assert len(await desk.tokens(*entries)) == 1200
    assert sorted(desk.vault.asked) == [200, 500, 500]
    assert await desk.tokens("7", "7") == [b"7-1", b"7-1"]
    assert len(desk.vault.asked) == 3, "what is held is asked for by nobody"


async def test_it_is_renewed_at_half_its_life_and_used_meanwhile(desk: Desk) -> None:
    await desk.tokens("a")
    await desk.clock.advance(LIFE / 2 - 1)
    await desk.tokens("a")
    assert len(desk.vault.asked) == 1
    desk.vault.version = 2
    await desk.clock.advance(2)
    assert await desk.tokens("a") == [b"a-1"], "nobody waits for a renewal"
    await until(lambda: desk.heard.said == ["a renewed 2"])
    assert await desk.tokens("a") == [b"a-2"]


async def test_without_its_vault_it_serves_to_the_end_of_its_lease_and_no_further(desk: Desk) -> None:
    await desk.tokens("a")
    await desk.server.stop(0)
    await desk.clock.advance(LIFE - 1)
    assert await desk.tokens("a") == [b"a-1"]
    await desk.clock.advance(2)
    with pytest.raises(Problem):
        await desk.tokens("a")


async def test_a_passing_trouble_takes_nothing_away_and_a_refusal_does(desk: Desk) -> None:
    await desk.tokens("a")
    desk.vault.refusal = Failure(kind=FAILURE_KIND_TRANSIENT, reason="REFRESHING")
    await desk.clock.advance(LIFE / 2 + 1)
    assert await desk.tokens("a") == [b"a-1"]
    await until(lambda: len(desk.vault.asked) == 2)
    assert await desk.tokens("a") == [b"a-1"]
    desk.vault.refusal = Failure(kind=FAILURE_KIND_PERMISSION_DENIED, reason="GRANT_MISSING")
    await desk.tokens("a")
    await until(lambda: desk.heard.said == ["a lost 1"])
    [held] = await desk.borrowed.get([place("a")])
    assert held.failure is not None
    assert held.failure.reason == "GRANT_MISSING"


async def test_whoever_was_refused_with_it_waits_for_the_next(desk: Desk) -> None:
    await desk.tokens("a")
    desk.vault.version = 2
    desk.borrowed.refused(place("a"), 1)
    assert await desk.tokens("a") == [b"a-2"]
    desk.borrowed.refused(place("a"), 1)
    await desk.tokens("a")
    assert len(desk.vault.asked) == 2, "an old complaint is about what is gone"
