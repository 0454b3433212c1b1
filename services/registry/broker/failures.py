"""Failures: what the broker says of its own, and how it reads what a plugin's call ended with."""

from __future__ import annotations

from collections.abc import Iterable

from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status

from services.registry.host.texts import plain
from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind

MESSAGE_LIMIT = 1024
REASON_LIMIT = 64
NAME_LIMIT = 128
UPSTREAM_LIMIT = 256
LONGEST_SECONDS = 366 * 24 * 3600
"""Nobody asks for more patience, and no clock could say how much it is."""

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


def invalid_input(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_INVALID_INPUT, reason, message)


def invalid_config(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_INVALID_CONFIG, reason, message)


def auth_failed(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_AUTH_FAILED, reason, message)


def permission_denied(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_PERMISSION_DENIED, reason, message)


def unsupported(reason: str, message: str) -> Failure:
    return _failure(FailureKind.FAILURE_KIND_UNSUPPORTED, reason, message)


def rate_limited(message: str, seconds: float) -> Failure:
    return later(_failure(FailureKind.FAILURE_KIND_RATE_LIMITED, "RATE_LIMITED", message), seconds)


def later(failure: Failure, seconds: float) -> Failure:
    """Not before so many seconds."""
    failure.retry_after.FromMilliseconds(max(1, round(seconds * 1000)))
    return failure


def untouched(failure: Failure) -> Failure:
    """It never reached the provider."""
    failure.effect = Effect.EFFECT_NONE
    return failure


class CallFailed(Exception):  # noqa: N818 - it failed
    """A call to a plugin did not come to what was asked. What it says is for the caller, as it is."""

    def __init__(
        self, failure: Failure, *, bare: bool = False, ours: bool = False, reached: bool = True
    ) -> None:
        super().__init__(f"{FailureKind.Name(failure.kind)} {failure.reason}")
        self.failure = failure
        self.bare = bare
        """No Failure came with it: the trouble is the process's or the way's, not the provider's."""
        self.ours = ours
        """We ended it ourselves: it says nothing of the plugin or its provider."""
        self.reached = reached
        """Whether the plugin was asked at all."""


def of_diagnostics(diagnostics: Iterable[Diagnostic]) -> Failure | None:
    """What is wrong with settings, if anything is; warnings are not."""
    told = [item for item in diagnostics if item.severity <= Diagnostic.SEVERITY_ERROR]
    if not told:
        return None
    why = "; ".join(f"{item.pointer or '/'}: {item.summary}" for item in told[:5])
    return _failure(FailureKind.FAILURE_KIND_INVALID_CONFIG, "SETTINGS_REFUSED", why)


def of_call(failed: AioRpcError) -> Failure:
    """The Failure that travelled with a status, or the nearest true thing that its code says."""
    return read(failed).failure


def read(failed: AioRpcError) -> CallFailed:
    try:
        status = rpc_status.from_call(failed)  # type: ignore[arg-type]  # it has what is read of a call
    except ValueError:  # the details contradict the status they came with
        status = None
    for detail in status.details if status else ():
        failure = Failure()
        if detail.Unpack(failure) and failure.kind:
            return CallFailed(bounded(failure))
    kind = _BARE.get(failed.code(), FailureKind.FAILURE_KIND_INTERNAL)
    return CallFailed(_failure(kind, failed.code().name, failed.details() or "no details"), bare=True)


def bounded(failure: Failure) -> Failure:
    """As the contract bounds it. A plugin may have written whatever it likes, and it goes a long way from here."""
    told = Failure()
    told.CopyFrom(failure)
    told.DiscardUnknownFields()
    if told.kind not in FailureKind.values():  # of a contract to come
        told.kind = FailureKind.FAILURE_KIND_INTERNAL
    told.reason = plain(told.reason[:REASON_LIMIT])
    told.message = _cut(told.message)
    if told.HasField("retry_after"):
        told.retry_after.seconds = min(max(told.retry_after.seconds, 0), LONGEST_SECONDS)
        told.retry_after.nanos = min(max(told.retry_after.nanos, 0), 999_999_999)
    if told.HasField("throttle_scope"):
        told.throttle_scope.bucket = told.throttle_scope.bucket[:NAME_LIMIT]
    if told.HasField("credential_version"):
        told.credential_version.slot = told.credential_version.slot[:REASON_LIMIT]
        told.credential_version.entry = told.credential_version.entry[:REASON_LIMIT]
    if told.HasField("upstream"):
        told.upstream.request_id = plain(told.upstream.request_id[:UPSTREAM_LIMIT])
        told.upstream.host = plain(told.upstream.host[:UPSTREAM_LIMIT])
    return told


def _failure(kind: FailureKind.ValueType, reason: str, message: str) -> Failure:
    return Failure(kind=kind, reason=reason, message=_cut(message))


def _cut(message: str) -> str:
    return plain(message).encode(errors="replace")[:MESSAGE_LIMIT].decode(errors="ignore")
