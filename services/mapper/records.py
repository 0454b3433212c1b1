"""Records of a poll on their way into the inbox, which knows them by their place in their stream."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from uuid import UUID

from foundation.clock import time_ordered_uuid
from foundation.errors import Code, Problem
from foundation.identity.names import parse
from services.mapper.inbox import Arrival, Fence
from services.mapper.names import partition_of
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, Failure
from tieline.mapper.v1.events_pb2 import Delivery
from tieline.mapper.v1.inbox_pb2 import AcceptRecordsRequest, DeliveryInput, RecordInput

_LIMITS = {"connection": 256, "stream": 64, "partition": 512, "reader": 64}
_TEXTS = {"event_type": 256, "content_type": 1024}
JSON = "application/json"


def fence_of(request: AcceptRecordsRequest) -> Fence:
    """The part of a stream that all of it is from; a Problem where there can be none such."""
    tenant, _ = parse("tenants/*/connections/*", request.connection, "connection")
    for field, limit in _LIMITS.items():
        value: str = getattr(request, field)
        if "\0" in value or len(value.encode()) > limit:
            raise Problem(Code.INVALID_ARGUMENT, field=field, why=f"a NUL, or more than {limit} bytes")
    if not request.stream:
        raise Problem(Code.INVALID_ARGUMENT, field="stream", why="it is empty")
    # No stream's name has an @ in it.
    read = f"{request.stream}@{request.reader}" if request.reader else request.stream
    return Fence(tenant, request.connection, read, request.partition, request.fence)


def arrival_of(given: RecordInput, request: AcceptRecordsRequest, fence: Fence, now: datetime) -> Arrival:
    """Every record can be kept: one that cannot be what it claims to be is a dead letter, and never lost."""
    received_at = _moment(given) or now
    failure = given.failure if given.HasField("failure") else None
    message = DeliveryInput(
        connection=request.connection,
        webhook=request.stream,
        delivery_id=time_ordered_uuid(received_at),
        provider_delivery_id=_key(given, request.partition),
        event_type=given.event_type or request.stream,
        content_type=given.content_type or JSON,
        body=given.payload,
        priority=request.priority,
    )
    for field, limit in _TEXTS.items():
        value: str = getattr(message, field)
        if "\0" in value or len(value.encode()) > limit:
            message.ClearField(field)  # type: ignore[arg-type]  # one of ours
            why = f"`{field}` holds a NUL or more than {limit} bytes"
            failure = failure or Failure(
                kind=FAILURE_KIND_INVALID_INPUT, reason="RECORD_UNUSABLE", message=why
            )
    record = Delivery.Record(
        partition=request.partition,
        key=given.key,
        version=given.version,
        ordering_key=given.ordering_key,
        occurred_at=given.occurred_at if given.HasField("occurred_at") else None,
    )
    return Arrival(
        fence.tenant,
        UUID(message.delivery_id),
        partition_of(request.connection),
        received_at,
        message,
        record,
        failure,
    )


def _key(given: RecordInput, partition: str) -> str:
    """The same for the same record, of a length that an index takes.

    What could not be read keeps apart from what it is once it can be, and from others that have no key.
    """
    if given.HasField("failure"):
        return f"broken/{_digest(partition.encode(), given.key.encode(), given.payload)}"
    return f"record/{_digest(*map(str.encode, (partition, given.key, given.version)))}"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in parts)).hexdigest()


def _moment(given: RecordInput) -> datetime | None:
    try:
        return given.received_at.ToDatetime(UTC) if given.HasField("received_at") else None
    except (ValueError, OverflowError):
        return None
