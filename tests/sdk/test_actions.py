"""Actions on the SDK: what a plugin's author says arrives as the contract has it, and what is forgotten is UNKNOWN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tieline.common.v1 import failure_pb2
from tieline.common.v1.failure_pb2 import ThrottleScope as Scope
from tieline.plugin.v1.execute_pb2 import ExecuteRequest, GetOperationRequest, GetOperationResponse
from tieline.plugin.v1.instance_pb2 import InitializeRequest, InstanceContext
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_GET_OPERATION, Manifest
from tieline.plugin.v1.manifest_pb2 import Action as Declared
from tieline.sdk import (
    Action,
    Credential,
    Done,
    Effect,
    Failed,
    Failure,
    FailureKind,
    Instance,
    NeverArrived,
    ObjectVersion,
    Outcome,
    Pending,
    ThrottleScope,
    Unknown,
)
from tieline.sdk._convert.actions import contradiction
from tieline.sdk._convert.failures import to_failure
from tieline.sdk._convert.service import Service

S = GetOperationResponse


class Plugin:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Action] = []

    async def act(self, _: Instance, action: Action) -> Done | Pending:
        return self._say(action)  # type: ignore[no-any-return]  # it is whatever a test wants

    async def outcome(self, _: Instance, action: Action) -> Outcome:
        return self._say(action)  # type: ignore[no-any-return]

    def _say(self, action: Action) -> Any:
        self.asked.append(action)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Mute:
    def transform(self, _: Instance, __: Any) -> Any: ...


async def serving(plugin: Any) -> Service:
    service = Service(plugin, Manifest(), b"", lambda _: None)
    await service.initialize(InitializeRequest(instance_id="i", config_revision=1, settings=b"{}"))
    return service


CONTEXT = InstanceContext(instance_id="i", config_revision=1)


async def executed(answer: Any) -> Any:
    service = await serving(Plugin(answer))
    request = ExecuteRequest(context=CONTEXT, action="write", arguments=b'{"n": 1}', idempotency_key="k")
    return await service.execute(request)


async def told(answer: Any) -> Any:
    service = await serving(Plugin(answer))
    request = GetOperationRequest(context=CONTEXT, action="write", provider_operation_id="job")
    return await service.get_operation(request)


async def test_what_was_asked_arrives_and_what_came_of_it_goes_back() -> None:
    plugin = Plugin(Done({"id": 7}, [ObjectVersion("issue", "7", "3")], replayed=True))
    service = await serving(plugin)
    request = ExecuteRequest(
        context=CONTEXT,
        action="write",
        arguments=b'{"n": 1}',
        idempotency_key="k",
        operation_id="o",
        attempt=2,
    )
    answer = await service.execute(request)
    assert plugin.asked == [Action(name="write", arguments={"n": 1}, key="k", operation_id="o", attempt=2)]
    assert (json.loads(answer.output), answer.replayed) == ({"id": 7}, True)
    assert (answer.written[0].kind, answer.written[0].id, answer.written[0].version) == ("issue", "7", "3")
    pending = await executed(Pending("job", ask_after=1.5))
    assert pending.pending.provider_operation_id == "job"
    assert pending.pending.ask_after.ToMilliseconds() == 1500


@pytest.mark.parametrize(
    ("answer", "reason", "effect"),
    [
        (None, "RESULT_MISSING", Effect.UNKNOWN),
        ({"id": 7}, "RESULT_MISSING", Effect.UNKNOWN),
        (Done({"id": object()}), "OUTPUT_NOT_JSON", Effect.APPLIED),
        (Done({"id": float("nan")}), "OUTPUT_NOT_JSON", Effect.APPLIED),
    ],
)
async def test_a_result_that_is_none_says_what_may_have_happened(
    answer: Any, reason: str, effect: Effect
) -> None:
    with pytest.raises(Failure) as failed:
        await executed(answer)
    assert (failed.value.reason, failed.value.effect) == (reason, effect)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Done({}), S.STATE_DONE),
        (Pending(ask_after=2), S.STATE_RUNNING),
        (Failed(Failure(FailureKind.CONFLICT, "MOVED", effect=Effect.NONE)), S.STATE_FAILED),
        (NeverArrived(), S.STATE_NEVER_ARRIVED),
        (Unknown(), S.STATE_UNKNOWN),
    ],
)
async def test_every_outcome_has_its_word(answer: Outcome, state: S.State.ValueType) -> None:
    assert (await told(answer)).state == state


async def test_who_cannot_ask_says_nothing_of_the_action() -> None:
    for answer in (Failure(FailureKind.TRANSIENT, "AWAY"), None):
        with pytest.raises(Failure):
            await told(answer)


def test_a_failure_carries_all_that_the_contract_knows() -> None:
    refused = Credential(slot="api", entry="a", version=3, fields={"token": b"x"})
    told = to_failure(
        Failure(
            FailureKind.RATE_LIMITED,
            "SLOW_DOWN",
            retry_after=1.5,
            throttle_scope=ThrottleScope("search", ThrottleScope.Reach.PLUGIN),
            effect=Effect.NONE,
            credential=refused,
        )
    )
    assert told.retry_after.ToMilliseconds() == 1500
    assert (told.throttle_scope.bucket, told.throttle_scope.reach) == ("search", Scope.REACH_PLUGIN)
    assert told.effect == failure_pb2.EFFECT_NONE
    assert (told.credential_version.slot, told.credential_version.version) == ("api", 3)
    bare = to_failure(Failure(FailureKind.CONFLICT, "MOVED"))
    assert bare.effect == failure_pb2.EFFECT_UNSPECIFIED
    assert not bare.HasField("retry_after")


def test_a_plugin_serves_what_it_has_and_does_not_start_without_what_it_promised() -> None:
    acting, mute = Plugin(None), Mute()
    methods: Mapping[str, Any] = Service(acting, Manifest(), b"", lambda _: None).methods()
    assert {"Execute", "GetOperation"} <= methods.keys()
    assert "TransformData" not in methods
    assert not {"Execute", "GetOperation"} & Service(mute, Manifest(), b"", lambda _: None).methods().keys()
    assert "act" in contradiction(mute, Manifest(actions=[Declared(name="write")]))
    assert "outcome" in contradiction(mute, Manifest(capabilities=[CAPABILITY_GET_OPERATION]))
    assert not contradiction(acting, Manifest(actions=[Declared(name="write")]))
