"""Actions in, what came of them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tieline.event.v1 import content_pb2
from tieline.plugin.v1 import execute_pb2
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_GET_OPERATION, Manifest
from tieline.sdk._convert.failures import to_failure
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import (
    Action,
    Acts,
    Done,
    Effect,
    Failed,
    Failure,
    FailureKind,
    NeverArrived,
    ObjectVersion,
    Pending,
    Plugin,
    TellsOutcomes,
    Unknown,
)

NAME = 512
S = execute_pb2.GetOperationResponse


def contradiction(plugin: Plugin, manifest: Manifest) -> str:
    """What the manifest promises and the plugin does not have; empty if there is nothing."""
    if manifest.actions and not isinstance(plugin, Acts):
        return "plugin.toml names actions, and the plugin has no method `act`"
    if CAPABILITY_GET_OPERATION in manifest.capabilities and not isinstance(plugin, TellsOutcomes):
        return "plugin.toml says `get_operation`, and the plugin has no method `outcome`"
    return ""


def to_action(message: execute_pb2.ExecuteRequest) -> Action:
    return Action(
        name=message.action,
        arguments=_arguments(message.arguments),
        key=message.idempotency_key,
        operation_id=message.operation_id,
        attempt=max(1, message.attempt),
    )


def to_question(message: execute_pb2.GetOperationRequest) -> Action:
    return Action(
        name=message.action,
        arguments=_arguments(message.arguments),
        key=message.idempotency_key,
        operation_id=message.operation_id,
        pending_id=message.provider_operation_id,
    )


def to_response(came: object) -> execute_pb2.ExecuteResponse:
    match came:
        case Done():
            return execute_pb2.ExecuteResponse(
                output=_output(came.output), written=_written(came.written), replayed=came.replayed
            )
        case Pending():
            pending = execute_pb2.PendingOperation(provider_operation_id=came.id)
            if came.ask_after is not None:
                pending.ask_after.FromMilliseconds(max(0, round(came.ask_after * 1000)))
            return execute_pb2.ExecuteResponse(pending=pending)
    why = f"`act` gave {type(came).__name__}, neither Done nor Pending"
    raise Failure(FailureKind.INTERNAL, "RESULT_MISSING", why, effect=Effect.UNKNOWN)


def to_outcome(came: object) -> S:
    match came:
        case Done():
            return S(state=S.STATE_DONE, output=_output(came.output), written=_written(came.written))
        case Pending():
            answer = S(state=S.STATE_RUNNING)
            if came.ask_after is not None:
                answer.ask_after.FromMilliseconds(max(0, round(came.ask_after * 1000)))
            return answer
        case Failed(failure):
            return S(state=S.STATE_FAILED, failure=to_failure(failure))
        case NeverArrived():
            return S(state=S.STATE_NEVER_ARRIVED)
        case Unknown():
            return S(state=S.STATE_UNKNOWN)
    raise Failure(FailureKind.INTERNAL, "OUTCOME_MISSING", f"`outcome` gave {type(came).__name__}")


def _arguments(raw: bytes) -> Mapping[str, Any]:
    try:
        arguments = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        why = "the arguments are not a JSON object"
        raise Failure(FailureKind.INVALID_INPUT, "ARGUMENTS_NOT_JSON", why, effect=Effect.NONE)
    return arguments


def _output(output: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(output), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        why = f"the output is not JSON: {error}"
        raise Failure(FailureKind.INTERNAL, "OUTPUT_NOT_JSON", why, effect=Effect.APPLIED) from None


def _written(objects: Iterable[ObjectVersion]) -> list[content_pb2.ObjectVersion]:
    return [
        content_pb2.ObjectVersion(kind=one.kind, id=clean(one.id, NAME), version=clean(one.version, NAME))
        for one in objects
    ]
