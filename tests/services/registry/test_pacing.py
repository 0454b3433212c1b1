"""A connection's own limit: in no minute more, whoever asks and however."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.broker.broker import Broker
from services.registry.broker.failures import CallFailed
from services.registry.broker.pacing import MINUTE, Paces
from services.registry.broker.serving import Pace, Served
from tests.services.registry.asked import asking, connected
from tests.services.registry.plugins import served
from tests.services.registry.test_health_rules import Hand
from tieline.common.v1.failure_pb2 import EFFECT_NONE, FAILURE_KIND_RATE_LIMITED
from tieline.plugin.v1.execute_pb2 import ExecuteRequest
from tieline.registry.v1.broker_pb2 import ConnectionRef

ONE = served("one")


@given(
    st.integers(1, 500),
    st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0, 7.0, 59.0, 200.0]), min_size=1, max_size=300),
)
@settings(max_examples=200, deadline=None)
def test_in_no_minute_more_than_was_said_and_no_less_than_half(limit: int, pauses: list[float]) -> None:
    """Feature: integrations, Property 9 (configuration): a connection's limit holds for every minute there is."""
    clock = Hand()
    paces, one = Paces(clock), replace(ONE, pace=Pace(limit))
    went: list[float] = []
    for pause in pauses:
        clock.elapsed += pause
        while not paces.take(one):
            went.append(clock.elapsed)
            assert len(went) <= 100_000
        waits = paces.take(one)
        assert 0 < waits <= 2 * MINUTE / limit + MINUTE
    for at in went:
        # Two may be let through at a limit of one where they are a minute apart.
        assert sum(at <= other < at + MINUTE - 1e-6 for other in went) <= max(limit, 1) + (limit == 1)
    clock.elapsed += 10 * MINUTE
    before = len(went)
    for _ in range(60):
        clock.elapsed += MINUTE / 60
        while not paces.take(one):
            went.append(clock.elapsed)
    assert len(went) - before >= limit / 2


def test_replicas_share_it() -> None:
    paces, one = Paces(Hand()), replace(ONE, pace=Pace(100))
    paces.replicas = 2
    went = 0
    while not paces.take(one):
        went += 1
    assert went == 5


def test_without_a_limit_nobody_waits() -> None:
    paces = Paces(Hand())
    assert not any(paces.take(ONE) for _ in range(10_000))


async def test_only_so_many_at_a_time() -> None:
    paces, one = Paces(Hand()), replace(ONE, pace=Pace(concurrency=2))
    inside = most = 0

    async def call() -> None:
        nonlocal inside, most
        async with paces.room(one, 30):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(call() for _ in range(20)))
    assert most == 2
    async with paces.room(one, 30), paces.room(one, 30):
        with pytest.raises(CallFailed, match="CONNECTION_BUSY"):
            async with paces.room(one, 0.01):
                pass


async def test_who_asks_more_of_a_provider_than_may_be_is_told_when_to_come_again(tmp_path: Path) -> None:
    one, other = replace(connected(1), pace=Pace(10)), connected(2)
    async with asking(tmp_path, one, other) as (broker, _):
        ask = ExecuteRequest(action="write", arguments=b"{}")

        async def write(number: int, served: Served) -> None:
            request = ExecuteRequest()
            request.CopyFrom(ask)
            request.idempotency_key = f"k{number}"
            await broker.executing.execute(ConnectionRef(connection=served.connection), request, 30.0)

        await write(1, one)
        with pytest.raises(CallFailed) as refused:
            await asyncio.wait_for(write_soon(broker, one), 30)
        failure = refused.value.failure
        assert failure.kind == FAILURE_KIND_RATE_LIMITED
        assert failure.effect == EFFECT_NONE
        assert 0 < failure.retry_after.ToTimedelta().total_seconds() <= 7
        for number in range(5):
            await write(number, other)


async def write_soon(broker: Broker, served: Served) -> None:
    """By somebody with less patience than the limit asks for."""
    request = ExecuteRequest(action="write", arguments=b"{}", idempotency_key="soon")
    await broker.executing.execute(ConnectionRef(connection=served.connection), request, 2.0)
