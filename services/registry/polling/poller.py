"""One poll of one part of a stream, from the provider into the inbox.

The order is the promise: records are accepted by the inbox, and only then the checkpoint that covers them is
stored. What fails in between comes again, and the inbox recognises it; nothing is ever skipped. Who polls what
and when is a schedule's affair: it hands over an errand and is told how it ended.
"""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

import structlog

from services.registry.broker.failures import CallFailed
from services.registry.broker.fetching import FETCH_SECONDS, Fetching
from services.registry.polling.checkpoints import Checkpoints, Claim, Place, TakenOver
from services.registry.polling.inbox import Inbox
from tieline.common.v1.delivery_pb2 import PRIORITY_BULK, Priority
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.fetch_pb2 import FetchDataRequest, FetchEnd, Partition, RecordBatch
from tieline.registry.v1.broker_pb2 import ConnectionRef

log = structlog.get_logger(__name__)

HELD_SECONDS = 30.0


class Ended(StrEnum):
    CAUGHT_UP = "caught up"
    LIMIT = "limit"
    """There is more: come again soon."""
    THROTTLED = "throttled"
    HELD = "held"
    """The inbox has enough to do; nobody was asked."""
    TAKEN_OVER = "taken over"
    """Another poller has it. Stop."""
    CURSOR_INVALID = "cursor invalid"
    """The provider no longer knows where we were."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a schedule wants polled."""

    connection: str
    stream: str
    partition: Partition = field(default_factory=Partition)
    priority: Priority.ValueType = Priority.PRIORITY_UNSPECIFIED
    max_records: int = 0
    starts_over: bool = True
    """What to do with a checkpoint that the provider no longer knows: forget it, or leave it for a person."""
    from_last: bool = False
    """Whoever starts over begins at the time of the newest record, not at the stream's default lookback."""
    window: FetchDataRequest.Window | None = None
    """Read this stretch of the past, as `reader`."""
    reader: str = ""

    @property
    def place(self) -> Place:
        return Place(self.connection, self.stream, self.partition.id, self.reader)


@dataclass(slots=True)
class Polled:
    """How it ended, and what the next poll should know of it."""

    ended: Ended
    records: int = 0
    broken: int = 0
    again_after: float | None = None
    """Seconds; None: the schedule decides."""
    failure: Failure | None = None


_ENDS = {
    FetchEnd.REASON_CAUGHT_UP: Ended.CAUGHT_UP,
    FetchEnd.REASON_THROTTLED: Ended.THROTTLED,
}


class Poller:
    def __init__(self, fetching: Fetching, inbox: Inbox, checkpoints: Checkpoints) -> None:
        self._fetching, self._inbox, self._checkpoints = fetching, inbox, checkpoints

    async def poll(self, errand: Errand, within: float = FETCH_SECONDS) -> Polled:
        """Takes the part over from whoever polled it before. Raises only what the store raises."""
        polled = Polled(Ended.FAILED)
        try:
            if errand.priority == PRIORITY_BULK and await self._inbox.holds_bulk():
                return Polled(Ended.HELD, again_after=HELD_SECONDS)
            claim = await self._checkpoints.claim(errand.place)
            try:
                await self._carry(errand, claim, polled, within)
            except CallFailed as failed:
                if failed.failure.kind != FailureKind.FAILURE_KIND_CURSOR_INVALID:
                    raise
                polled.ended, polled.failure = Ended.CURSOR_INVALID, failed.failure
                if errand.starts_over and claim.checkpoint.cursor:
                    await self._checkpoints.forget(claim, claim.last_time if errand.from_last else None)
                    polled.again_after = 0.0
        except TakenOver:
            polled.ended = Ended.TAKEN_OVER
        except CallFailed as failed:
            polled.ended, polled.failure = Ended.FAILED, failed.failure
            polled.again_after = _seconds(failed.failure)
        log.debug("polled", connection=errand.connection, stream=errand.stream, ended=polled.ended)
        return polled

    async def _carry(self, errand: Errand, claim: Claim, polled: Polled, within: float) -> None:
        request = FetchDataRequest(
            stream=errand.stream,
            partition=errand.partition,
            checkpoint=claim.checkpoint,
            max_records=errand.max_records,
        )
        if errand.window is not None:
            request.backfill.CopyFrom(errand.window)
        elif claim.start_time is not None and not claim.checkpoint.cursor:
            request.start_time.FromDatetime(claim.start_time)
        ref, newest = ConnectionRef(connection=errand.connection), claim.last_time
        async with aclosing(self._fetching.fetch(ref, request, within)) as frames:
            async for frame in frames:
                match frame.WhichOneof("frame"):
                    case "records":
                        batch = frame.records
                        if batch.records or batch.broken:
                            await self._inbox.accept(claim, batch, errand.priority)
                            polled.records += len(batch.records)
                            polled.broken += len(batch.broken)
                            newest = _newest(newest, batch)
                        if batch.HasField("checkpoint"):
                            await self._checkpoints.store(claim, batch.checkpoint, newest)
                    case "end":
                        polled.ended = _ENDS.get(frame.end.reason, Ended.LIMIT)
                        if frame.end.HasField("next_poll_after"):
                            polled.again_after = frame.end.next_poll_after.ToTimedelta().total_seconds()


def _newest(known: datetime | None, batch: RecordBatch) -> datetime | None:
    """When the newest of these happened; what no clock could say is nobody's time."""
    for record in batch.records:
        if record.HasField("occurred_at"):
            with suppress(ValueError, OverflowError):
                at = record.occurred_at.ToDatetime(UTC)
                known = at if known is None else max(known, at)
    return known


def _seconds(failure: Failure) -> float | None:
    return failure.retry_after.ToTimedelta().total_seconds() if failure.HasField("retry_after") else None
