"""Failures: what the broker says of its own, and how it reads what a plugin's call ended with."""

from __future__ import annotations

from collections.abc import Iterable

from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status

from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.common.v1.failure_pb2 import Failure, FailureKind

MESSAGE_LIMIT = 1024

# A call that fails without a Failure is read by its bare code; what is not here is a defect.
_BARE: dict[StatusCode, FailureKind.ValueType] = {
    StatusCode.UNAVAILABLE: FailureKind.FAILURE_KIND_TRANSIENT,
    StatusCode.UNAUTHENTICATED: FailureKind.FAILURE_KIND_AUTH_FAILED,
    StatusCode.PERMISSION_DENIED: FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    StatusCode.INVALID_ARGUMENT: FailureKind.FAILURE_KIND_INVALID_INPUT,
    StatusCode.NOT_FOUND: FailureKind.FAILURE_KIND_NOT_FOUND,
    StatusCode.OUT_OF_RANGE: FailureKind.FAILURE_KIND_CURSOR_INVALID,
    StatusCode.UNIMPLEMENTED: FailureKind.FAILURE_KIND_UNSUPPORTED,
}


def transient(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_TRANSIENT, reason, message)


def not_found(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_NOT_FOUND, reason, message)


def internal(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_INTERNAL, reason, message)


def of_diagnostics(diagnostics: Iterable[Diagnostic]) -> Failure | None:
    """What is wrong with settings, if anything is; warnings are not."""
    told = [item for item in diagnostics if item.severity <= Diagnostic.SEVERITY_ERROR]
    if not told:
        return None
    why = "; ".join(f"{item.pointer or '/'}: {item.summary}" for item in told[:5])
    return _failure(FailureKind.FAILURE_KIND_INVALID_CONFIG, "SETTINGS_REFUSED", why)


def of_call(failed: AioRpcError) -> Failure:
    """The Failure that travelled with a status, or the nearest true thing that its code says."""
    try:
        status = rpc_status.from_call(failed)  # type: ignore[arg-type]  # it has what is read of a call
    except ValueError:  # the details contradict the status they came with
        status = None
    for detail in status.details if status else ():
        failure = Failure()
        if detail.Unpack(failure) and failure.kind:
            return failure
    kind = _BARE.get(failed.code(), FailureKind.FAILURE_KIND_INTERNAL)
    return _failure(kind, failed.code().name, failed.details() or "no details")


def _failure(kind: FailureKind.ValueType, reason: str, message: str) -> Failure:
    cut = message.encode(errors="replace")[:MESSAGE_LIMIT].decode(errors="ignore")
    return Failure(kind=kind, reason=reason, message=cut)
