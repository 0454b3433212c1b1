"""FetchData and ListPartitions, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from tieline.plugin.v1 import fetch_pb2 as pb
from tieline.plugin.v1.manifest_pb2 import Manifest, Stream
from tieline.sdk._convert.failures import to_failure
from tieline.sdk._convert.frames import Frames
from tieline.sdk._convert.instances import Instances
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import Failure, FailureKind
from tieline.sdk.fetching import BrokenEntry, Fetches, ListsPartitions, Partition, Poll, Window

PAGE = 500
_END = object()

T = TypeVar("T")


class Fetching:
    def __init__(self, plugin: object, manifest: Manifest, instances: Instances) -> None:
        self._plugin, self._instances = plugin, instances
        self._streams = {stream.name: stream for stream in manifest.streams}

    @property
    def fetches(self) -> bool:
        return isinstance(self._plugin, Fetches)

    @property
    def lists(self) -> bool:
        return isinstance(self._plugin, ListsPartitions)

    async def fetch_data(self, request: pb.FetchDataRequest) -> AsyncIterator[pb.FetchDataResponse]:
        instance, stream = self._instances.get(request.context), self._stream(request.stream)
        if not isinstance(self._plugin, Fetches):
            raise Failure(FailureKind.UNSUPPORTED, "NO_STREAMS", "this plugin does not poll")
        given = request.checkpoint
        if given.cursor and given.cursor_version != stream.cursor_version:
            why = f"a checkpoint of format {given.cursor_version}, and {stream.cursor_version} is read"
            raise Failure(FailureKind.CURSOR_INVALID, "CURSOR_FORMAT", why)
        found = self._plugin.fetch(instance, _poll(request))
        async for frame in Frames(_async(found), request, stream.cursor_version):
            yield frame

    async def list_partitions(self, request: pb.ListPartitionsRequest) -> pb.ListPartitionsResponse:
        """Pages by id: each is the beginning of what comes after the one before."""
        instance, stream = self._instances.get(request.context), self._stream(request.stream)
        if not isinstance(self._plugin, ListsPartitions):
            raise Failure(FailureKind.UNSUPPORTED, "NO_PARTITIONS", "this plugin lists no partitions")
        found: dict[str, Partition] = {}
        answer, size = pb.ListPartitionsResponse(), request.page_size or PAGE
        async for one in _async(self._plugin.partitions(instance, stream.name)):
            if isinstance(one, BrokenEntry):
                answer.broken.add(slot_entry=one.slot_entry, failure=to_failure(one.failure))
            elif not one.id:
                raise Failure(FailureKind.INTERNAL, "PARTITION_INVALID", "a partition needs an id")
            else:
                found[one.id] = one
        rest = sorted(id_ for id_ in found if id_ > request.page_token)
        answer.partitions.extend(_partition(found[id_]) for id_ in rest[:size])
        if len(rest) > size:
            answer.next_page_token = rest[size - 1]
        return answer

    def _stream(self, name: str) -> Stream:
        if name not in self._streams:
            raise Failure(FailureKind.NOT_FOUND, "STREAM_UNKNOWN", f"there is no stream {name[:64]}")
        return self._streams[name]


def _poll(request: pb.FetchDataRequest) -> Poll:
    part = request.partition
    window = None
    if request.HasField("backfill"):
        window = Window(_time(request.backfill.start), _time(request.backfill.end))
    return Poll(
        stream=request.stream,
        partition=Partition(part.id, part.title, part.slot_entry, part.state),
        cursor=request.checkpoint.cursor,
        start_time=_time(request.start_time) if request.HasField("start_time") else None,
        window=window,
    )


def _partition(one: Partition) -> pb.Partition:
    return pb.Partition(id=one.id, title=clean(one.title, 256), slot_entry=one.slot_entry, state=one.state)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


async def _async(found: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    """A plain generator may block, so it is asked in a thread; one that is left is closed."""
    if isinstance(found, AsyncIterable):
        try:
            async for item in found:
                yield item
        finally:
            close = getattr(found, "aclose", None)
            if close is not None:
                await close()
        return
    rest = iter(found)
    try:
        while (item := await asyncio.to_thread(_next, rest)) is not _END:
            yield item
    finally:
        close = getattr(rest, "close", None)
        if close is not None:
            with suppress(ValueError):  # it is still at work, and ends with its thread
                await asyncio.to_thread(close)


def _next(rest: Iterator[Any]) -> Any:
    return next(rest, _END)
