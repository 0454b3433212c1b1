"""A failure as the contract has it."""

from __future__ import annotations

from tieline.common.v1 import failure_pb2
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import Failure

MESSAGE, BUCKET = 1024, 128


def to_failure(failure: Failure) -> failure_pb2.Failure:
    told = failure_pb2.Failure(
        kind=failure_pb2.FailureKind.Value(f"FAILURE_KIND_{failure.kind.name}"),
        reason=failure.reason,
        message=clean(failure.message, MESSAGE),
    )
    if failure.retry_after is not None:
        told.retry_after.FromMilliseconds(max(0, round(failure.retry_after * 1000)))
    if failure.effect is not None:
        told.effect = failure_pb2.Effect.Value(f"EFFECT_{failure.effect.name}")
    if (scope := failure.throttle_scope) is not None:
        told.throttle_scope.bucket = clean(scope.bucket, BUCKET)
        told.throttle_scope.reach = failure_pb2.ThrottleScope.Reach.Value(f"REACH_{scope.reach.name}")
    if (refused := failure.credential) is not None:
        told.credential_version.slot = refused.slot
        told.credential_version.entry = refused.entry
        told.credential_version.version = refused.version
    return told
