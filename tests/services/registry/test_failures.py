"""What plugins say went wrong, however they say it: within the contract before anybody else reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.clock import SteeredClock
from services.registry.broker.broker import Broker
from services.registry.broker.failures import LONGEST_SECONDS, CallFailed, bounded
from services.registry.broker.operations import Operation
from services.registry.broker.serving import FixedConnections
from services.registry.broker.throttles import LONGEST_SECONDS as LONGEST_THROTTLE
from services.registry.broker.throttles import Throttles
from services.registry.host.texts import plain
from tests.services.registry.plugins import group, hosting
from tests.services.registry.raw import connected, look, make_raw, ref
from tieline.common.v1.failure_pb2 import Failure, FailureKind


def within_the_contract(failure: Failure) -> bool:
    return (
        failure.kind == FailureKind.FAILURE_KIND_INTERNAL
        and len(failure.reason) <= 64
        and len(failure.message.encode()) <= 1024
        and plain(failure.message) == failure.message
        and failure.retry_after.ToTimedelta().total_seconds() <= LONGEST_SECONDS + 1
        and len(failure.throttle_scope.bucket) <= 128
    )


@pytest.mark.parametrize("word", ["odd", "odd group", "odd outcome"])
async def test_a_strange_failure_of_a_transformation_is_made_an_ordinary_one(
    tmp_path: Path, word: str
) -> None:
    below, one = make_raw(tmp_path), connected(1)
    async with hosting(below / "plugins") as host:
        broker = Broker(host, FixedConnections(one))
        (result,) = await broker.transform([group(one, word)])
    told = result.failure if result.HasField("failure") else result.outcomes[0].failure
    assert within_the_contract(told), told


async def test_a_strange_failure_of_a_call_is_made_an_ordinary_one(tmp_path: Path) -> None:
    below, one = make_raw(tmp_path), connected(1, "odd")
    async with hosting(below / "plugins") as host:
        broker = Broker(host, FixedConnections(one))
        with pytest.raises(CallFailed) as failed:
            await broker.calls.unary(ref(one), Operation(name="HealthCheck"), look, 20.0)
    assert within_the_contract(failed.value.failure)


async def test_an_answer_for_another_instance_is_none(tmp_path: Path) -> None:
    below, one = make_raw(tmp_path), connected(1)
    async with hosting(below / "plugins") as host:
        broker = Broker(host, FixedConnections(one))
        (result,) = await broker.transform([group(one, "another")])
    assert result.failure.reason == "RESULTS_MIXED"
    assert not result.outcomes


async def test_two_outcomes_for_one_input_are_none(tmp_path: Path) -> None:
    below, one = make_raw(tmp_path), connected(1)
    async with hosting(below / "plugins") as host:
        broker = Broker(host, FixedConnections(one))
        (result,) = await broker.transform([group(one, "twice")])
    assert [outcome.failure.reason for outcome in result.outcomes] == ["NO_OUTCOME"]


@pytest.mark.parametrize("seconds", [2**62, -(2**62)])
def test_patience_has_bounds(seconds: int) -> None:
    failure = Failure(kind=FailureKind.FAILURE_KIND_RATE_LIMITED)
    failure.retry_after.seconds, failure.retry_after.nanos = seconds, -1
    throttles, one = Throttles(SteeredClock()), connected(1)
    throttles.hold(one, "X", bounded(failure))
    assert 0 <= throttles.remaining(one, "X") <= LONGEST_THROTTLE


def test_a_terminal_is_not_steered() -> None:
    assert plain("\x1b[2J\x07a\r\x00\x9b1m\tb\nc") == "\ufffd[2J\ufffda\ufffd\ufffd\ufffd1m\tb\nc"
    assert plain("käse 1") == "käse 1"
