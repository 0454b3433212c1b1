"""The mapper's inbox as a poller sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.rpc import Connection
from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from services.registry.polling.checkpoints import Claim, TakenOver
from tieline.common.v1.delivery_pb2 import Priority
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.mapper.v1.inbox_pb2 import (
    AcceptOutcome,
    AcceptRecordsRequest,
    GetInboxPressureRequest,
    RecordInput,
)
from tieline.mapper.v1.inbox_pb2_grpc import InboxServiceStub
from tieline.plugin.v1.fetch_pb2 import RecordBatch

RECORDS = 1000
ACCEPT_SECONDS = 20.0
_THERE = (AcceptOutcome.RESULT_ACCEPTED, AcceptOutcome.RESULT_DUPLICATE)


class Inbox(Protocol):
    async def accept(self, claim: Claim, batch: RecordBatch, priority: Priority.ValueType) -> None:
        """Returns when all of it is durable. CallFailed if any is not, TakenOver if we may no longer."""

    async def holds_bulk(self) -> bool:
        """It has enough to do without history."""


class MapperInbox:
    def __init__(self, mapper: Connection, clock: Clock) -> None:
        self._stub = InboxServiceStub(mapper)
        self._clock = clock

    async def accept(self, claim: Claim, batch: RecordBatch, priority: Priority.ValueType) -> None:
        records = list(self._inputs(batch))
        for start in range(0, len(records), RECORDS):
            await self._send(claim, records[start : start + RECORDS], priority)

    async def holds_bulk(self) -> bool:
        try:
            answer = await self._stub.GetInboxPressure(GetInboxPressureRequest())
        except Problem as problem:
            raise _away(problem) from None
        return answer.hold_bulk

    async def _send(self, claim: Claim, records: Sequence[RecordInput], priority: Priority.ValueType) -> None:
        request = AcceptRecordsRequest(
            connection=claim.place.connection,
            stream=claim.place.stream,
            partition=claim.place.partition,
            records=records,
            priority=priority,
            fence=claim.epoch,
            reader=claim.place.reader,
        )
        try:
            answer = await self._stub.AcceptRecords(request, timeout=ACCEPT_SECONDS)
        except Problem as problem:
            if problem.code is Code.CONFLICT:
                raise TakenOver from None
            raise _away(problem) from None
        _demand_all(answer.outcomes, len(records))

    def _inputs(self, batch: RecordBatch) -> Iterator[RecordInput]:
        now = self._clock.now()
        for record in batch.records:
            given = RecordInput(
                key=record.key,
                version=record.version,
                payload=record.payload,
                content_type=record.content_type,
                ordering_key=record.ordering_key,
                event_type=record.event_type,
            )
            if record.HasField("occurred_at"):
                given.occurred_at.CopyFrom(record.occurred_at)
            given.received_at.FromDatetime(now)
            yield given
        for broken in batch.broken:
            given = RecordInput(key=broken.key, payload=broken.excerpt, failure=broken.failure)
            if not broken.HasField("failure"):
                given.failure.CopyFrom(failures.internal("UNNAMED", "the plugin does not say what ails it"))
            given.received_at.FromDatetime(now)
            yield given


def _demand_all(outcomes: Sequence[AcceptOutcome], sent: int) -> None:
    if len(outcomes) != sent:
        why = f"{len(outcomes)} outcomes came for {sent} records"
        raise CallFailed(failures.transient("ANSWER_MALFORMED", why))
    for outcome in outcomes:
        if outcome.result not in _THERE:
            failure = outcome.failure if outcome.HasField("failure") else failures.transient("REFUSED", "")
            raise CallFailed(failure)


def _away(problem: Problem) -> CallFailed:
    failure = failures.transient("INBOX_UNAVAILABLE", problem.sentence)
    if problem.code is Code.INVALID_ARGUMENT:
        failure.kind = FailureKind.FAILURE_KIND_INVALID_INPUT
    return CallFailed(failure)
