"""Execute and GetOperation: what changes something at a provider.

A write is made at most once. Whatever cannot be known of it is said to be unknown, and who asked decides: nobody
here repeats what may have happened. An answer that breaks its schema is a defect of something that was done, so
it says APPLIED.
"""

from __future__ import annotations

import hashlib

from services.registry.broker import failures
from services.registry.broker.calling import Calls
from services.registry.broker.declared import API_SLOT, demand, refused, the
from services.registry.broker.documents import Unfit, canonical
from services.registry.broker.failures import CallFailed
from services.registry.broker.keys import Keys
from services.registry.broker.operations import Operation, Reach
from tieline.common.v1.failure_pb2 import Effect, Failure
from tieline.plugin.v1.execute_pb2 import (
    ExecuteRequest,
    ExecuteResponse,
    GetOperationRequest,
    GetOperationResponse,
)
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_GET_OPERATION, Action, Manifest
from tieline.registry.v1.broker_pb2 import ConnectionRef

ATTEMPT_SECONDS = 30.0
LONGEST_SECONDS = 300.0
OUTCOME_SECONDS = 30.0
KEY_CHARACTERS = 128
OPERATION_ID_BYTES = 512


class Executing:
    def __init__(self, calls: Calls, keys: Keys | None = None) -> None:
        self._calls = calls
        self._keys = keys or Keys()

    async def execute(
        self,
        ref: ConnectionRef,
        given: ExecuteRequest,
        within: float,
        *,
        key_is_kept: bool = False,
        receives: bool = False,
    ) -> ExecuteResponse:
        """`key_is_kept`: somebody else keeps what the key stands for, and for longer than we can.

        `receives`: it is a part of receiving, which goes on while the connection rests.
        """
        served, process = await self._calls.find(ref)
        action = _action(process.manifest, given.action)
        reads = action.idempotency == Action.IDEMPOTENCY_READ_ONLY
        request = _request(given, action)
        meaning = hashlib.sha256(f"{action.name}\n".encode() + request.arguments).digest()
        key = "" if key_is_kept else request.idempotency_key
        if key and not self._keys.claim(served.connection, key, meaning):
            raise refused("KEY_REUSED", "this idempotency key stands for another action or other arguments")

        async def ask(reach: Reach) -> ExecuteResponse:
            request.context.CopyFrom(reach.context)
            return _checked(await reach.stub.Execute(request, **reach.options), action)

        operation = Operation(
            name=f"Execute/{action.name}",
            writes=not reads,
            slot=action.slot or API_SLOT,
            receives=receives,
        )
        return (await self._calls.unary(ref, operation, ask, min(within, seconds_of(action)))).message

    async def outcome(
        self, ref: ConnectionRef, given: GetOperationRequest, within: float, *, receives: bool = False
    ) -> GetOperationResponse:
        _, process = await self._calls.find(ref)
        demand(CAPABILITY_GET_OPERATION, process.manifest)
        action = _action(process.manifest, given.action)
        request = GetOperationRequest()
        request.CopyFrom(given)

        async def ask(reach: Reach) -> GetOperationResponse:
            request.context.CopyFrom(reach.context)
            return _told(await reach.stub.GetOperation(request, **reach.options), action)

        operation = Operation(
            name=f"GetOperation/{action.name}", slot=action.slot or API_SLOT, receives=receives
        )
        return (await self._calls.unary(ref, operation, ask, min(within, OUTCOME_SECONDS))).message


def _action(manifest: Manifest, name: str) -> Action:
    return the("action", manifest.actions, name, manifest)


def seconds_of(action: Action) -> float:
    """How long one attempt may take."""
    if not action.HasField("timeout"):
        return ATTEMPT_SECONDS
    return min(LONGEST_SECONDS, action.timeout.ToTimedelta().total_seconds())


def _request(given: ExecuteRequest, action: Action) -> ExecuteRequest:
    """As the plugin gets it, but for the context."""
    key = given.idempotency_key
    if len(key) > KEY_CHARACTERS or not key.isascii():
        raise refused("KEY_INVALID", f"an idempotency key has at most {KEY_CHARACTERS} ASCII characters")
    if not key and action.idempotency != Action.IDEMPOTENCY_READ_ONLY:
        raise refused("KEY_MISSING", f"{action.name} changes something, so it needs an idempotency key")
    try:
        arguments = canonical(given.arguments, action.input_schema)
    except Unfit as unfit:
        raise refused("ARGUMENTS_INVALID", str(unfit)) from None
    request = ExecuteRequest()
    request.CopyFrom(given)
    request.arguments, request.attempt = arguments, max(1, given.attempt)
    return request


def _checked(answer: ExecuteResponse, action: Action) -> ExecuteResponse:
    """The answer, if it is one: it was given, so the action was performed, or is."""
    reads = action.idempotency == Action.IDEMPOTENCY_READ_ONLY
    match answer.WhichOneof("result"):
        case "output":
            try:
                canonical(answer.output, action.output_schema)
            except Unfit as unfit:
                effect = Effect.EFFECT_UNSPECIFIED if reads else Effect.EFFECT_APPLIED
                raise _defect("OUTPUT_INVALID", str(unfit), effect) from None
        case "pending":
            if not action.long_running or len(answer.pending.provider_operation_id) > OPERATION_ID_BYTES:
                why = "the plugin says that it goes on, as this action cannot by its manifest"
                raise _defect("PENDING_UNEXPECTED", why, Effect.EFFECT_UNKNOWN)
        case _:
            raise _defect("RESULT_MISSING", "the plugin does not say what came of it", Effect.EFFECT_UNKNOWN)
    return answer


def _told(answer: GetOperationResponse, action: Action) -> GetOperationResponse:
    if answer.state == GetOperationResponse.STATE_UNSPECIFIED:
        answer.state = GetOperationResponse.STATE_UNKNOWN
    if answer.state == GetOperationResponse.STATE_DONE:
        try:
            canonical(answer.output, action.output_schema)
        except Unfit as unfit:
            raise _defect("OUTPUT_INVALID", str(unfit), Effect.EFFECT_APPLIED) from None
    if answer.state == GetOperationResponse.STATE_FAILED and not answer.failure.effect:
        answer.failure.effect = Effect.EFFECT_UNKNOWN
    return answer


def _defect(reason: str, why: str, effect: Effect.ValueType) -> CallFailed:
    failure: Failure = failures.internal(reason, why)
    failure.effect = effect
    return CallFailed(failure)
