"""FetchData and ListPartitions: what a plugin finds when it goes and looks.

Frames pass through as they come, and nothing is repeated here once one came: who reads them knows how far it got.
Whoever leaves a stream early cancels the plugin's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.registry.broker import failures
from services.registry.broker.calling import Calls
from services.registry.broker.declared import API_SLOT, demand, refused, the
from services.registry.broker.failures import CallFailed
from services.registry.broker.frames import CURSOR_BYTES, SILENCE_SECONDS, Frames
from services.registry.broker.operations import Operation, Reach
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.fetch_pb2 import (
    FetchDataRequest,
    FetchDataResponse,
    FetchEnd,
    ListPartitionsRequest,
    ListPartitionsResponse,
    Partition,
)
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_LIST_PARTITIONS, Stream
from tieline.registry.v1.broker_pb2 import ConnectionRef

SOFT_SECONDS = 90.0
FETCH_SECONDS = 300.0
LIST_SECONDS = 30.0
PAGE = 500
LARGEST_PAGE = 1000
MOST_PARTITIONS = 100_000
PARTITION_ID_BYTES = 512
STATE_BYTES = 4 * 1024


class Fetching:
    def __init__(self, calls: Calls, silence: float = SILENCE_SECONDS) -> None:
        self._calls, self._silence = calls, silence

    async def fetch(
        self, ref: ConnectionRef, given: FetchDataRequest, within: float = FETCH_SECONDS
    ) -> AsyncGenerator[FetchDataResponse, None]:
        """Use it inside `contextlib.aclosing`."""
        served, process = await self._calls.find(ref)
        stream = the("stream", process.manifest.streams, given.stream, process.manifest)
        _check(given, stream)
        request = FetchDataRequest()
        request.CopyFrom(given)
        soft = given.soft_deadline.ToTimedelta().total_seconds() if given.HasField("soft_deadline") else 0.0
        request.soft_deadline.FromMilliseconds(round(1000 * min(soft or SOFT_SECONDS, within * 0.75)))

        def ask(reach: Reach) -> Frames:
            request.context.CopyFrom(reach.context)
            return Frames(reach.stub.FetchData(request, **reach.options), self._silence)

        operation = _operation("FetchData", stream, given.partition.slot_entry)
        async with aclosing(self._calls.stream(ref, operation, ask, within)) as frames:
            async for frame in frames:
                if frame.end.reason == FetchEnd.REASON_THROTTLED:
                    self._calls.hold(served, operation, _patience(frame.end))
                yield frame

    async def partitions(
        self, ref: ConnectionRef, given: ListPartitionsRequest, within: float = LIST_SECONDS
    ) -> ListPartitionsResponse:
        """One page."""
        _, process = await self._calls.find(ref)
        stream = the("stream", process.manifest.streams, given.stream, process.manifest)
        if not stream.partitioned:
            return ListPartitionsResponse(partitions=[Partition()])
        demand(CAPABILITY_LIST_PARTITIONS, process.manifest)
        size = min(given.page_size or PAGE, LARGEST_PAGE)
        request = ListPartitionsRequest(stream=stream.name, page_size=size, page_token=given.page_token)

        async def ask(reach: Reach) -> ListPartitionsResponse:
            request.context.CopyFrom(reach.context)
            answer = await reach.stub.ListPartitions(request, **reach.options)
            _check_page(answer)
            return answer

        operation = _operation("ListPartitions", stream)
        return (await self._calls.unary(ref, operation, ask, min(within, LIST_SECONDS))).message

    async def all_partitions(self, ref: ConnectionRef, stream: str) -> ListPartitionsResponse:
        """All pages as one: only after this may somebody forget a partition that is not in it."""
        whole, tokens, known = ListPartitionsResponse(), {""}, set[str]()
        request = ListPartitionsRequest(stream=stream)
        while True:
            page = await self.partitions(ref, request)
            fresh = [one for one in page.partitions if one.id not in known]
            known.update(one.id for one in fresh)
            whole.partitions.extend(fresh)
            whole.broken.extend(page.broken)
            if not page.next_page_token:
                return whole
            if page.next_page_token in tokens or len(known) > MOST_PARTITIONS:
                why = f"the listing does not end; {len(known)} partitions came"
                raise CallFailed(failures.internal("LISTING_ENDLESS", why))
            tokens.add(page.next_page_token)
            request.page_token = page.next_page_token


def _operation(method: str, stream: Stream, entry: str = "") -> Operation:
    return Operation(name=f"{method}/{stream.name}", slot=stream.slot or API_SLOT, entry=entry)


def _check(given: FetchDataRequest, stream: Stream) -> None:
    if given.partition.id and not stream.partitioned:
        raise refused("PARTITION_UNEXPECTED", f"{stream.name} is not partitioned")
    if len(given.partition.id.encode()) > PARTITION_ID_BYTES or len(given.partition.state) > STATE_BYTES:
        raise refused("PARTITION_INVALID", "its id or its state is too long")
    if len(given.checkpoint.cursor) > CURSOR_BYTES:
        raise refused("CHECKPOINT_INVALID", f"a cursor has at most {CURSOR_BYTES} bytes")
    if given.HasField("backfill") and not stream.backfill:
        raise CallFailed(failures.unsupported("BACKFILL_UNKNOWN", f"{stream.name} cannot read the past"))


def _check_page(answer: ListPartitionsResponse) -> None:
    ids = [one.id for one in answer.partitions]
    too_long = any(len(one.encode()) > PARTITION_ID_BYTES for one in ids)
    if "" in ids or len(set(ids)) != len(ids) or too_long or any("\0" in one for one in ids):
        why = "a partition has no id of its own, or one that is too long or holds a NUL"
        raise CallFailed(failures.internal("PARTITION_INVALID", why))
    if any(len(one.state) > STATE_BYTES for one in answer.partitions):
        why = f"the state of a partition has more than {STATE_BYTES} bytes"
        raise CallFailed(failures.internal("PARTITION_INVALID", why))


def _patience(end: FetchEnd) -> Failure:
    """What a poll that ended in time says of its provider counts as if it had failed of it."""
    seconds = end.next_poll_after.ToTimedelta().total_seconds() if end.HasField("next_poll_after") else 0.0
    failure = failures.rate_limited("the provider asks for patience", seconds or SOFT_SECONDS)
    failure.throttle_scope.CopyFrom(end.throttle_scope)
    return failure
