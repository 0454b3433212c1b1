"""What a generator yields, as the frames of a poll."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from typing import TypeVar

from tieline.common.v1 import failure_pb2
from tieline.plugin.v1 import fetch_pb2 as pb
from tieline.sdk._convert.events import moment
from tieline.sdk._convert.failures import BUCKET, to_failure
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import Failure, FailureKind
from tieline.sdk.fetching import (
    Broken,
    CaughtUp,
    Checkpoint,
    Found,
    PatienceOver,
    Progress,
    Record,
    Throttled,
)

FRAME_BYTES = 1024 * 1024 - 16 * 1024
RECORDS = 1000
EXCERPT_BYTES = 64 * 1024
CURSOR_BYTES = 64 * 1024
MAX_RECORDS = 10_000
SOFT_SECONDS = 90.0
LINGER_SECONDS = 1.0
"""How long what was found may wait for more of it."""
LIFE_SECONDS = 10.0

T = TypeVar("T")
_END = object()


class Frames:
    """One poll: iterate it for what is to be sent, the end included."""

    def __init__(
        self,
        found: AsyncIterator[Found],
        request: pb.FetchDataRequest,
        cursor_version: int,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._found, self._version, self._now = found, cursor_version, now
        self._most = request.max_records or MAX_RECORDS
        soft = request.soft_deadline.ToTimedelta().total_seconds() if request.HasField("soft_deadline") else 0
        self._until = now() + (soft or SOFT_SECONDS)
        self._batch = pb.RecordBatch()
        self._bytes = self._count = 0
        self._covered = (0, 0)
        """Of the records and the broken ones of the batch, how many its checkpoint covers."""
        self._sent_at = now()
        self._end = pb.FetchEnd(reason=pb.FetchEnd.REASON_CAUGHT_UP, budget_left=-1)

    async def __aiter__(self) -> AsyncIterator[pb.FetchDataResponse]:
        """Whatever happens, what was found before it is sent first."""
        try:
            async with aclosing(self._items()) as items:
                async for item in items:
                    for frame in self._take(item):
                        yield frame
                    if self._ends_at(item):
                        break
        except PatienceOver as over:
            self._throttle(over.throttled)
        except Exception:
            for frame in self._flush():
                yield frame
            raise
        for frame in self._flush():
            yield frame
        self._end.records_total = self._count
        yield pb.FetchDataResponse(end=self._end)

    async def _items(self) -> AsyncGenerator[Found | None, None]:
        """What is found as it comes; None where it is time to send what there is, or to say that we live."""
        step: asyncio.Task[Found | object] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext_or(self._found, _END))
                while not (await asyncio.wait([step], timeout=LINGER_SECONDS))[0]:
                    yield None
                item = step.result()
                if item is _END:
                    return
                yield item  # type: ignore[misc]  # the end was sorted out
        finally:
            if step is not None and not step.done():
                step.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await step
            close = getattr(self._found, "aclose", None)
            if close is not None:
                await close()

    def _take(self, item: Found | None) -> Iterator[pb.FetchDataResponse]:
        match item:
            case Record():
                yield from self._add(item)
            case Broken():
                yield from self._make_room(len(item.excerpt))
                self._batch.broken.append(_broken(item))
            case Checkpoint():
                yield from self._cover(item)
            case Progress():
                yield from self._flush()
                said = clean(item.message, 256)
                progress = pb.Progress(scanned=item.scanned, total=item.total, message=said)
                yield pb.FetchDataResponse(progress=progress)
            case Throttled():
                self._throttle(item)
            case CaughtUp(after) if after is not None:
                self._end.next_poll_after.FromTimedelta(after)
            case None:
                yield from self._live()

    def _cover(self, checkpoint: Checkpoint) -> Iterator[pb.FetchDataResponse]:
        if len(checkpoint.cursor) > CURSOR_BYTES:
            why = f"a checkpoint has at most {CURSOR_BYTES} bytes"
            raise Failure(FailureKind.INTERNAL, "CHECKPOINT_TOO_LARGE", why)
        told = pb.Checkpoint(cursor=checkpoint.cursor, cursor_version=self._version)
        self._batch.checkpoint.CopyFrom(told)
        self._covered = (len(self._batch.records), len(self._batch.broken))
        if self._now() - self._sent_at >= LINGER_SECONDS:
            yield from self._flush()

    def _live(self) -> Iterator[pb.FetchDataResponse]:
        """Nothing was found for a moment: send what there is, or now and then a sign of life."""
        yield from self._flush()
        if self._now() - self._sent_at >= LIFE_SECONDS:
            self._sent_at = self._now()
            yield pb.FetchDataResponse(progress=pb.Progress())

    def _ends_at(self, item: Found | None) -> bool:
        """Enough is enough, but only where a checkpoint covers it all."""
        if isinstance(item, Throttled | CaughtUp):
            return True
        enough = self._count >= self._most or self._now() >= self._until
        if enough and isinstance(item, Checkpoint):
            self._end.reason = pb.FetchEnd.REASON_LIMIT
            return True
        return False

    def _add(self, record: Record) -> Iterator[pb.FetchDataResponse]:
        if not record.key:
            why = "a record needs a key, or its repeats could not be recognised"
            raise Failure(FailureKind.INTERNAL, "KEY_MISSING", why)
        made = pb.Record(
            key=record.key,
            version=record.version,
            payload=record.payload,
            content_type=record.content_type,
            ordering_key=record.ordering_key,
            occurred_at=moment(record.occurred_at),
            event_type=record.event_type,
        )
        yield from self._make_room(made.ByteSize())
        self._batch.records.append(made)
        self._count += 1

    def _make_room(self, size: int) -> Iterator[pb.FetchDataResponse]:
        if (self._bytes and self._bytes + size > FRAME_BYTES) or len(self._batch.records) >= RECORDS:
            yield from self._flush()
        self._bytes += size + 64

    def _flush(self) -> Iterator[pb.FetchDataResponse]:
        """A checkpoint covers what is in its own frame; what came after it goes into another."""
        whole, (records, broken) = self._batch, self._covered
        self._batch, self._bytes, self._covered = pb.RecordBatch(), 0, (0, 0)
        if not whole.ByteSize():
            return
        self._sent_at = self._now()
        rest = pb.RecordBatch()
        if whole.HasField("checkpoint"):
            rest.records.extend(whole.records[records:])
            rest.broken.extend(whole.broken[broken:])
            del whole.records[records:]
            del whole.broken[broken:]
        yield pb.FetchDataResponse(records=whole)
        if rest.ByteSize():
            yield pb.FetchDataResponse(records=rest)

    def _throttle(self, throttled: Throttled) -> None:
        self._end.reason = pb.FetchEnd.REASON_THROTTLED
        self._end.next_poll_after.FromTimedelta(throttled.after)
        scope = self._end.throttle_scope
        scope.bucket = clean(throttled.scope.bucket, BUCKET)
        scope.reach = failure_pb2.ThrottleScope.Reach.Value(f"REACH_{throttled.scope.reach.name}")


async def anext_or(found: AsyncIterator[T], end: object) -> T | object:
    try:
        return await anext(found)
    except StopAsyncIteration:
        return end


def _broken(item: Broken) -> pb.BrokenRecord:
    return pb.BrokenRecord(
        key=item.key, failure=to_failure(item.failure), excerpt=item.excerpt[:EXCERPT_BYTES]
    )
