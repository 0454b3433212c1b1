"""Actions: asked for once, never repeated in doubt, and never said to be what they are not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.failures import CallFailed
from services.registry.broker.keys import Keys
from services.registry.broker.serving import Served
from services.registry.broker.telling import status_of
from tests.services.registry.asked import asking, connected
from tests.services.registry.raw import calls, ref
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind
from tieline.plugin.v1.execute_pb2 import ExecuteRequest, GetOperationRequest, GetOperationResponse

NONE, APPLIED, UNKNOWN = Effect.EFFECT_NONE, Effect.EFFECT_APPLIED, Effect.EFFECT_UNKNOWN
ONE = connected(1)


def wanted(action: str = "write", key: str = "k", **arguments: Any) -> ExecuteRequest:
    request = ExecuteRequest(action=action, idempotency_key=key, arguments=json.dumps(arguments).encode())
    request.context.instance_id = "somebody else's"
    return request


async def failure_of(
    broker: Broker, request: ExecuteRequest, within: float = 20.0, served: Served = ONE
) -> Failure:
    with pytest.raises(CallFailed) as failed:
        await broker.executing.execute(ref(served), request, within)
    return failed.value.failure


async def test_an_action_is_performed_for_the_connection_that_was_named(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        answer = await broker.executing.execute(ref(ONE), wanted(n=1), 20.0)
        assert json.loads(answer.output) == {"id": 7}
        long = await broker.executing.execute(ref(ONE), wanted("long", "l", how="pending"), 20.0)
        assert long.pending.provider_operation_id == "job-1"
    first, _ = calls(tmp_path, "Execute")
    assert (first["instance"], first["attempt"], first["key"]) == (ONE.instance, 1, "k")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (wanted(how=7), "ARGUMENTS_INVALID"),
        (ExecuteRequest(action="write", idempotency_key="k", arguments=b"[1]"), "ARGUMENTS_INVALID"),
        (ExecuteRequest(action="write", idempotency_key="k", arguments=b'{"n": NaN}'), "ARGUMENTS_INVALID"),
        (ExecuteRequest(action="write", idempotency_key="k", arguments=b"[" * 900_000), "ARGUMENTS_INVALID"),
        (wanted(key=""), "KEY_MISSING"),
        (wanted(key="x" * 129), "KEY_INVALID"),
        (wanted(key="schlüssel"), "KEY_INVALID"),
        (wanted("unheard-of"), "ACTION_UNKNOWN"),
    ],
)
async def test_what_cannot_be_is_refused_before_a_plugin_hears_of_it(
    tmp_path: Path, request_: ExecuteRequest, reason: str
) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        failure = await failure_of(broker, request_)
    assert (failure.reason, failure.effect) == (reason, NONE)
    assert not calls(tmp_path, "Execute")


async def test_a_key_stands_for_one_action_with_one_set_of_arguments(tmp_path: Path) -> None:
    other = connected(2)
    async with asking(tmp_path, ONE, other) as (broker, _):
        await broker.executing.execute(ref(ONE), wanted(n=1, how="so"), 20.0)
        again = ExecuteRequest(action="write", idempotency_key="k", arguments=b' {"how":"so",  "n": 1}')
        await broker.executing.execute(ref(ONE), again, 20.0)
        assert (await failure_of(broker, wanted(n=2, how="so"))).reason == "KEY_REUSED"
        assert (await failure_of(broker, wanted("long", n=1, how="so"))).reason == "KEY_REUSED"
        await broker.executing.execute(ref(other), wanted(n=2), 20.0)
    assert len(calls(tmp_path, "Execute")) == 3


def test_keys_are_remembered_within_bounds() -> None:
    keys = Keys(connections=2, of_one=2)
    for key in "abc":
        assert keys.claim("one", key, b"1")
    assert not keys.claim("one", "c", b"2")
    assert keys.claim("one", "a", b"2"), "it was forgotten"
    assert keys.claim("two", "c", b"2")
    assert keys.claim("three", "c", b"2")
    assert keys.claim("one", "c", b"2"), "all of it was forgotten"


@pytest.mark.parametrize(
    ("how", "kind", "effect"),
    [
        ("die", FailureKind.FAILURE_KIND_TRANSIENT, UNKNOWN),
        ("hang", FailureKind.FAILURE_KIND_TRANSIENT, UNKNOWN),
        ("nothing", FailureKind.FAILURE_KIND_INTERNAL, UNKNOWN),
        ("pending", FailureKind.FAILURE_KIND_INTERNAL, UNKNOWN),
        ("wrong", FailureKind.FAILURE_KIND_INTERNAL, APPLIED),
        ("defect", FailureKind.FAILURE_KIND_INTERNAL, NONE),
        ("conflict", FailureKind.FAILURE_KIND_CONFLICT, NONE),
    ],
)
async def test_a_write_is_made_once_and_says_what_it_may_have_changed(
    tmp_path: Path, how: str, kind: FailureKind.ValueType, effect: Effect.ValueType
) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        await broker.executing.execute(ref(ONE), wanted(key="warm"), 30.0)
        failure = await failure_of(broker, wanted(how=how), 3.0 if how == "hang" else 30.0)
        assert (failure.kind, failure.effect) == (kind, effect)
        assert len(calls(tmp_path, "Execute")) == 2


async def test_a_plugin_that_is_killed_in_the_middle_leaves_an_unknown_effect(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, host):
        call = asyncio.create_task(failure_of(broker, wanted(how="hang"), 30.0))
        await until(lambda: calls(tmp_path, "Execute"))
        pid = host.processes["asked"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        failure = await call
        assert (failure.reason, failure.effect) == ("PLUGIN_CRASHED", UNKNOWN)
        await broker.executing.execute(ref(ONE), wanted(key="next"), 30.0)
    assert len(calls(tmp_path, "Execute")) == 2


async def test_an_instance_that_was_forgotten_is_given_again_and_the_action_made_once_more(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        await broker.executing.execute(ref(ONE), wanted(how="forget"), 20.0)
    assert len(calls(tmp_path, "Initialize")) == 2
    assert len(calls(tmp_path, "Execute")) == 2


async def test_the_action_says_how_long_it_may_take(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        await broker.executing.execute(ref(ONE), wanted(key="warm"), 30.0)
        failure = await failure_of(broker, wanted("long", how="hang"), 300.0)
    assert (failure.reason, failure.effect) == ("TOO_SLOW", UNKNOWN)


async def test_what_only_reads_needs_no_key_and_is_asked_again(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        await broker.executing.execute(ref(ONE), wanted("read", ""), 20.0)
        failure = await failure_of(broker, wanted("read", "", how="wrong"))
        assert (failure.reason, failure.effect) == ("OUTPUT_INVALID", Effect.EFFECT_UNSPECIFIED)
    assert len(calls(tmp_path, "Execute")) == 4


async def test_who_leaves_is_heard_by_the_plugin(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        call = asyncio.create_task(broker.executing.execute(ref(ONE), wanted(how="hang"), 30.0))
        await until(lambda: calls(tmp_path, "Execute"))
        call.cancel()
        await until(lambda: calls(tmp_path, "cancelled"))
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_what_became_of_an_action_can_be_asked(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        done = await broker.executing.outcome(ref(ONE), _about("k"), 20.0)
        assert (done.state, done.output) == (GetOperationResponse.STATE_DONE, b'{"id": 7}')
        vague = await broker.executing.outcome(ref(ONE), _about("vague"), 20.0)
        assert vague.state == GetOperationResponse.STATE_UNKNOWN
        with pytest.raises(CallFailed, match="OUTPUT_INVALID") as wrong:
            await broker.executing.outcome(ref(ONE), _about("wrong"), 20.0)
        assert wrong.value.failure.effect == APPLIED


async def test_a_plugin_that_does_not_say_so_is_not_asked_what_became(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE, capabilities='"release"') as (broker, _):
        with pytest.raises(CallFailed) as failed:
            await broker.executing.outcome(ref(ONE), _about("k"), 20.0)
    assert failed.value.failure.kind == FailureKind.FAILURE_KIND_UNSUPPORTED
    assert not calls(tmp_path, "GetOperation")


def test_a_failure_fits_into_the_details_of_a_status_whatever_a_plugin_wrote() -> None:
    failure = Failure(kind=FailureKind.FAILURE_KIND_CONFLICT, reason="R" * 9000, message="ü" * 9000)
    failure.upstream.host = failure.upstream.request_id = "h" * 9000
    failure.throttle_scope.bucket = failure.credential_version.entry = "b" * 9000
    assert status_of(failure).ByteSize() < 4096


def _about(key: str) -> GetOperationRequest:
    return GetOperationRequest(action="write", idempotency_key=key)
