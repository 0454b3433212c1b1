"""One call to one plugin: what is prepared, repeated, waited for, and how its end is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.failures import CallFailed
from services.registry.broker.operations import Operation
from services.registry.broker.outcomes import Outcome
from services.registry.broker.serving import FixedConnections, Served
from services.registry.host.host import Host
from tests.services.registry.plugins import hosting
from tests.services.registry.raw import act, calls, connected, fetch, look, make_raw, ref
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind

LOOK = Operation(name="HealthCheck")
WRITE = Operation(name="Execute/do", writes=True)
POLL = Operation(name="FetchData/all")
NONE, UNKNOWN = Effect.EFFECT_NONE, Effect.EFFECT_UNKNOWN


class Heard(list[Outcome]):
    def heard(self, outcome: Outcome) -> None:
        self.append(outcome)


@asynccontextmanager
async def brokering(
    below: Path, *connections: Served, listener: Heard | None = None
) -> AsyncIterator[tuple[Broker, Host]]:
    make_raw(below)
    async with hosting(below / "plugins") as host:
        yield Broker(host, FixedConnections(*connections), listener=listener), host


async def failure_of(
    broker: Broker, one: Served, operation: Operation, ask: object, within: float
) -> Failure:
    with pytest.raises(CallFailed) as failed:
        await broker.calls.unary(ref(one), operation, ask, within)  # type: ignore[arg-type]
    return failed.value.failure


async def test_a_plugin_that_forgot_everything_is_told_again_and_nobody_notices(tmp_path: Path) -> None:
    one = connected(1, "forget once")
    async with brokering(tmp_path, one) as (broker, _):
        answer = await broker.calls.unary(ref(one), LOOK, look, 20.0)
        assert (answer.plugin_version, answer.revision) == ("1.0.0", 1)
    assert len(calls(tmp_path, "Initialize")) == 2


async def test_many_calls_of_a_new_instance_prepare_it_once(tmp_path: Path) -> None:
    one = connected(1)
    async with brokering(tmp_path, one) as (broker, _):
        await asyncio.gather(*(broker.calls.unary(ref(one), LOOK, look, 20.0) for _ in range(20)))
    assert len(calls(tmp_path, "Initialize")) == 1
    assert len(calls(tmp_path, "HealthCheck")) == 20


@pytest.mark.parametrize(
    ("action", "kind", "effect"),
    [
        ("die", FailureKind.FAILURE_KIND_TRANSIENT, UNKNOWN),
        ("bare", FailureKind.FAILURE_KIND_TRANSIENT, UNKNOWN),
        ("hang", FailureKind.FAILURE_KIND_TRANSIENT, UNKNOWN),
        ("unsaid", FailureKind.FAILURE_KIND_INTERNAL, UNKNOWN),
        ("none", FailureKind.FAILURE_KIND_TRANSIENT, NONE),
    ],
)
async def test_a_write_says_what_it_may_have_changed_and_is_made_once(
    tmp_path: Path, action: str, kind: FailureKind.ValueType, effect: Effect.ValueType
) -> None:
    one = connected(1)
    async with brokering(tmp_path, one) as (broker, _):
        await broker.calls.unary(ref(one), LOOK, look, 20.0)  # so that its start is not in the time
        failure = await failure_of(broker, one, WRITE, act(action), 3.0)
    assert (failure.kind, failure.effect) == (kind, effect)
    assert len(calls(tmp_path, "Execute")) == 1


async def test_what_never_reached_a_plugin_has_changed_nothing(tmp_path: Path) -> None:
    pending, stranger, one = connected(2, revision=0), connected(9), connected(1)
    async with brokering(tmp_path, pending, one) as (broker, host):
        for served, reason in ((pending, "NOT_APPLIED"), (stranger, "CONNECTION_UNKNOWN")):
            failure = await failure_of(broker, served, WRITE, act("ok"), 5.0)
            assert (failure.reason, failure.effect) == (reason, NONE)
        await broker.calls.unary(ref(one), LOOK, look, 20.0)
        process = host.processes["raw"]
        async with process.call(20.0, alone=True):
            busy = await failure_of(broker, one, WRITE, act("ok"), 0.5)
        assert busy.effect == NONE
    assert not calls(tmp_path, "Execute")


async def test_a_defect_of_a_read_is_met_twice_more_and_then_told(tmp_path: Path) -> None:
    always, once = connected(1, "defect"), connected(2, "defect once")
    async with brokering(tmp_path, always) as (broker, _):
        failure = await failure_of(broker, always, LOOK, look, 20.0)
    assert (failure.kind, failure.reason) == (FailureKind.FAILURE_KIND_INTERNAL, "DEFECT")
    assert len(calls(tmp_path, "HealthCheck")) == 3
    below = tmp_path / "another"
    below.mkdir()
    async with brokering(below, once) as (broker, _):
        await broker.calls.unary(ref(once), LOOK, look, 20.0)
    assert len(calls(below, "HealthCheck")) == 2


async def test_a_short_rate_limit_is_waited_out_and_a_long_one_told_at_once(tmp_path: Path) -> None:
    short, long, other = connected(1, "limited 200"), connected(2, "limited 120000"), connected(3)
    async with brokering(tmp_path, short) as (broker, _):
        await broker.calls.unary(ref(short), LOOK, look, 20.0)
    assert len(calls(tmp_path, "HealthCheck")) == 2
    below = tmp_path / "another"
    below.mkdir()
    async with brokering(below, long, other) as (broker, _):
        for _ in range(3):
            failure = await failure_of(broker, long, LOOK, look, 20.0)
            assert failure.kind == FailureKind.FAILURE_KIND_RATE_LIMITED
            assert 0 < failure.retry_after.ToTimedelta().total_seconds() <= 120
            assert failure.effect != UNKNOWN
        assert len(calls(below, "HealthCheck")) == 1, "only one of them reached the plugin"
        await broker.calls.unary(ref(other), LOOK, look, 20.0)


async def test_what_fails_in_a_row_is_left_alone_and_its_neighbours_are_not(tmp_path: Path) -> None:
    broken, fine = connected(1, "down"), connected(2)
    heard = Heard()
    async with brokering(tmp_path, broken, fine, listener=heard) as (broker, _):
        reasons = [(await failure_of(broker, broken, LOOK, look, 20.0)).reason for _ in range(8)]
        assert reasons[:5] == ["DOWN"] * 5
        assert set(reasons[5:]) <= {"CIRCUIT_OPEN", "DOWN"}, "a trial may go, once its pause is over"
        assert "CIRCUIT_OPEN" in reasons
        await broker.calls.unary(ref(fine), LOOK, look, 20.0)
    assert {one.operation for one in heard} == {"HealthCheck"}
    told = [one.failure.reason if one.failure else "" for one in heard]
    assert told[:5] == ["DOWN"] * 5
    assert told[-1] == ""
    assert heard[-1].connection == fine.connection
    assert "CIRCUIT_OPEN" not in told, "who never called says nothing of health"


async def test_a_stream_is_the_plugins_own_frames_and_ends_where_its_reader_leaves(tmp_path: Path) -> None:
    one = connected(1)
    async with brokering(tmp_path, one) as (broker, host):
        frames = [frame async for frame in broker.calls.stream(ref(one), POLL, fetch("all"), 20.0)]
        assert [frame.WhichOneof("frame") for frame in frames] == ["records"] * 3 + ["end"]
        async with aclosing(broker.calls.stream(ref(one), POLL, fetch("endless"), 60.0)) as endless:
            async for _ in endless:
                break
        process = host.processes["raw"]
        await until(lambda: not process.calls_in_flight, 30)


async def test_a_stream_that_breaks_is_not_begun_again_by_itself(tmp_path: Path) -> None:
    one = connected(1)
    got: list[object] = []

    async def read(broker: Broker) -> None:
        async for frame in broker.calls.stream(ref(one), POLL, fetch("cut"), 20.0):
            got.append(frame)  # noqa: PERF401 - what came before the end must be kept

    async with brokering(tmp_path, one) as (broker, _):
        with pytest.raises(CallFailed) as cut:
            await read(broker)
    assert cut.value.failure.kind == FailureKind.FAILURE_KIND_TRANSIENT
    assert len(got) == 2
    assert len(calls(tmp_path, "FetchData")) == 1


async def test_polls_give_way_to_a_suspect_who_has_to_be_alone(tmp_path: Path) -> None:
    one = connected(1)
    ended: list[Failure] = []

    async def poll(broker: Broker) -> None:
        async with aclosing(broker.calls.stream(ref(one), POLL, fetch("endless"), 300.0)) as frames:
            async for _ in frames:
                pass

    async def poll_until_it_gives_way(broker: Broker) -> None:
        with pytest.raises(CallFailed) as gave_way:
            await poll(broker)
        ended.append(gave_way.value.failure)

    async with brokering(tmp_path, one) as (broker, host):
        polls = [asyncio.create_task(poll_until_it_gives_way(broker)) for _ in range(4)]
        process = host.processes["raw"]
        await until(lambda: process.calls_in_flight == 4, 30)
        async with broker.calls.life(process, "suspect", 30.0, alone=True):
            assert process.calls_in_flight == 1
            with pytest.raises(CallFailed, match="GAVE_WAY"):
                await poll(broker)
        await asyncio.gather(*polls)
        assert [why.reason for why in ended] == ["GAVE_WAY"] * 4

        cancelled = asyncio.create_task(poll(broker))
        await until(lambda: process.calls_in_flight, 30)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_a_read_whose_plugin_dies_is_transient_and_tells_how(tmp_path: Path) -> None:
    one = connected(1)
    async with brokering(tmp_path, one) as (broker, host):
        await broker.calls.unary(ref(one), LOOK, look, 20.0)
        hanging = Operation(name="Execute/hang")
        call = asyncio.create_task(failure_of(broker, one, hanging, act("hang"), 30.0))
        await until(lambda: calls(tmp_path, "Execute"), 30)
        process = host.processes["raw"]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        failure = await call
        assert failure.reason == "PLUGIN_CRASHED"
        assert "SIGKILL" in failure.message
        assert process.state is not State.FAILED
