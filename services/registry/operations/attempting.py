"""One call of a plugin about one operation, and what it says in the words of the state machine."""

from __future__ import annotations

from typing import Protocol

import structlog

from services.registry.broker import failures
from services.registry.broker.executing import OUTCOME_SECONDS
from services.registry.broker.failures import CallFailed
from services.registry.operations.machine import (
    Done,
    Failed,
    GoesOn,
    Happening,
    NeverArrived,
    Unasked,
    Untold,
)
from services.registry.operations.operation import Operation
from tieline.common.v1.failure_pb2 import Effect, FailureKind
from tieline.plugin.v1.execute_pb2 import (
    ExecuteRequest,
    ExecuteResponse,
    GetOperationRequest,
    GetOperationResponse,
)
from tieline.registry.v1.broker_pb2 import ConnectionRef

log = structlog.get_logger(__name__)

ASK_SECONDS = 5.0
"""When to ask next, if the plugin does not say."""

# Nobody could be asked; who was, and cannot tell, used up a chance.
_AWAY = frozenset(
    {
        FailureKind.FAILURE_KIND_TRANSIENT,
        FailureKind.FAILURE_KIND_RATE_LIMITED,
        FailureKind.FAILURE_KIND_AUTH_FAILED,
        FailureKind.FAILURE_KIND_PERMISSION_DENIED,
        FailureKind.FAILURE_KIND_INVALID_CONFIG,
        FailureKind.FAILURE_KIND_NOT_PREPARED,
    }
)


class Performs(Protocol):
    """The broker, as far as actions go."""

    async def execute(
        self,
        ref: ConnectionRef,
        given: ExecuteRequest,
        within: float,
        *,
        key_is_kept: bool = False,
        receives: bool = False,
    ) -> ExecuteResponse: ...

    async def outcome(
        self, ref: ConnectionRef, given: GetOperationRequest, within: float, *, receives: bool = False
    ) -> GetOperationResponse: ...


async def attempt(broker: Performs, operation: Operation) -> Happening:
    """Have it done. Whatever goes wrong is an answer, too."""
    request = ExecuteRequest(
        action=operation.action,
        arguments=operation.arguments,
        idempotency_key=operation.key,
        operation_id=operation.id,
        attempt=operation.progress.attempts,
    )
    ref = ConnectionRef(connection=operation.connection)
    try:
        answer = await broker.execute(
            ref, request, operation.timeout, key_is_kept=True, receives=operation.receives
        )
    except CallFailed as failed:
        return Failed(failed.failure, failed.reached)
    except Exception:  # the border of one attempt: whatever it was, the plugin may have been called
        log.exception("an attempt failed", operation=operation.name)
        defect = failures.internal("DEFECT", "something went wrong on our side; the log has the rest")
        defect.effect = Effect.EFFECT_UNKNOWN
        return Failed(defect)
    if answer.WhichOneof("result") == "pending":
        after = answer.pending.ask_after if answer.pending.HasField("ask_after") else None
        seconds = ASK_SECONDS if after is None else after.ToTimedelta().total_seconds()
        return GoesOn(ask_after=seconds, pending_id=answer.pending.provider_operation_id)
    return Done(output=answer.output, written=answer.written)


async def ask(broker: Performs, operation: Operation) -> Happening:
    """Ask what became of it."""
    request = GetOperationRequest(
        action=operation.action,
        arguments=operation.arguments,
        idempotency_key=operation.key,
        provider_operation_id=operation.progress.pending_id,
        operation_id=operation.id,
    )
    try:
        answer = await broker.outcome(
            ConnectionRef(connection=operation.connection),
            request,
            OUTCOME_SECONDS,
            receives=operation.receives,
        )
    except CallFailed as failed:
        return _unanswered(failed)
    except Exception:  # the border of one question
        log.exception("what became of an operation could not be asked", operation=operation.name)
        return Untold(failures.internal("DEFECT", "something went wrong on our side; the log has the rest"))
    return _answered(answer)


def _answered(answer: GetOperationResponse) -> Happening:
    match answer.state:
        case GetOperationResponse.STATE_DONE:
            return Done(output=answer.output, written=answer.written)
        case GetOperationResponse.STATE_RUNNING:
            told = answer.HasField("ask_after")
            return GoesOn(ask_after=answer.ask_after.ToTimedelta().total_seconds() if told else ASK_SECONDS)
        case GetOperationResponse.STATE_FAILED:
            return Failed(failures.bounded(answer.failure))
        case GetOperationResponse.STATE_NEVER_ARRIVED:
            return NeverArrived()
        case _:
            return Untold()


def _unanswered(failed: CallFailed) -> Happening:
    failure = failed.failure
    if failure.effect == Effect.EFFECT_APPLIED:  # done, by an answer that is not what the schema says
        return Failed(failure)
    if failure.kind in _AWAY:
        return Unasked(failure)
    # Whom nobody can ask, or who cannot tell at all, will not be able to tomorrow.
    never = failure.kind in {FailureKind.FAILURE_KIND_UNSUPPORTED, FailureKind.FAILURE_KIND_NOT_FOUND}
    return Untold(failure, final=never)
