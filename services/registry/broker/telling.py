"""A Failure of a whole call on its way to our own caller: in the status, beside the code of its kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_status import rpc_status

from foundation.rpc.call import ServicerContext
from services.registry.broker.failures import CallFailed, bounded
from tieline.common.v1.failure_pb2 import Failure, FailureKind

_CODES: dict[FailureKind.ValueType, StatusCode] = {
    FailureKind.FAILURE_KIND_TRANSIENT: StatusCode.UNAVAILABLE,
    FailureKind.FAILURE_KIND_RATE_LIMITED: StatusCode.RESOURCE_EXHAUSTED,
    FailureKind.FAILURE_KIND_AUTH_FAILED: StatusCode.UNAUTHENTICATED,
    FailureKind.FAILURE_KIND_PERMISSION_DENIED: StatusCode.PERMISSION_DENIED,
    FailureKind.FAILURE_KIND_INVALID_CONFIG: StatusCode.FAILED_PRECONDITION,
    FailureKind.FAILURE_KIND_INVALID_INPUT: StatusCode.INVALID_ARGUMENT,
    FailureKind.FAILURE_KIND_NOT_FOUND: StatusCode.NOT_FOUND,
    FailureKind.FAILURE_KIND_CONFLICT: StatusCode.ABORTED,
    FailureKind.FAILURE_KIND_CURSOR_INVALID: StatusCode.OUT_OF_RANGE,
    FailureKind.FAILURE_KIND_UNSUPPORTED: StatusCode.UNIMPLEMENTED,
    FailureKind.FAILURE_KIND_INTERNAL: StatusCode.INTERNAL,
    FailureKind.FAILURE_KIND_NOT_PREPARED: StatusCode.FAILED_PRECONDITION,
}
TEXTS = 256


@asynccontextmanager
async def telling(context: ServicerContext) -> AsyncIterator[None]:
    """What a call to a plugin came to leaves as the status of this one."""
    try:
        yield
    except CallFailed as failed:
        await context.abort_with_status(rpc_status.to_status(status_of(failed.failure)))


def status_of(failure: Failure) -> Status:
    told = bounded(failure)  # details above 4 KiB would be lost on the way
    detail = AnyMessage()
    detail.Pack(told)
    code: int = _CODES.get(told.kind, StatusCode.INTERNAL).value[0]
    return Status(code=code, message=f"{told.reason}: {told.message[:TEXTS]}", details=[detail])
