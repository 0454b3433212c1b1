"""Polls by generator: what a plugin yields, as the frames that the contract demands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tieline.plugin.v1 import fetch_pb2 as pb
from tieline.plugin.v1 import instance_pb2
from tieline.plugin.v1.manifest_pb2 import Manifest, Stream
from tieline.sdk import (
    Broken,
    BrokenEntry,
    CaughtUp,
    Checkpoint,
    Failure,
    FailureKind,
    Found,
    Instance,
    Partition,
    Poll,
    Progress,
    Record,
    Throttled,
    ThrottleScope,
)
from tieline.sdk._convert import frames as framing
from tieline.sdk._convert.fetching import Fetching
from tieline.sdk._convert.frames import Frames
from tieline.sdk._convert.instances import Instances

MANIFEST = Manifest(name="x", streams=[Stream(name="items", cursor_version=3)])
CONTEXT = instance_pb2.InstanceContext(instance_id="i", config_revision=1)


async def frames(*found: Found, request: pb.FetchDataRequest | None = None) -> list[pb.FetchDataResponse]:
    async def every() -> AsyncIterator[Found]:
        for one in found:
            yield one

    return [frame async for frame in Frames(every(), request or pb.FetchDataRequest(), 3)]


def record(key: str, size: int = 1) -> Record:
    return Record(key, b"x" * size)


FOUND = st.lists(
    st.one_of(
        st.integers(0, 400_000).map(lambda size: ("record", size)),
        st.just(("checkpoint", 0)),
        st.just(("broken", 10)),
        st.just(("progress", 0)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(FOUND)
def test_what_is_yielded_arrives_in_order_and_checkpoints_cover_what_was_before_them(
    shape: Sequence[tuple[str, int]],
) -> None:
    """Feature: integrations, Property 12: frames of a poll."""
    items, covers, count = list[Found](), dict[bytes, int](), 0
    for number, (what, size) in enumerate(shape):
        match what:
            case "record":
                items.append(record(f"k{number}", size))
                count += 1
            case "checkpoint":
                covers[f"c{number}".encode()] = count
                items.append(Checkpoint(f"c{number}".encode()))
            case "broken":
                items.append(Broken(f"b{number}", Failure(FailureKind.INVALID_INPUT, "X"), b"x" * size))
            case _:
                items.append(Progress(number))
    sent = asyncio.run(frames(*items))
    assert [frame.WhichOneof("frame") for frame in sent].count("end") == 1
    assert sent[-1].end.reason == pb.FetchEnd.REASON_CAUGHT_UP
    assert sent[-1].end.records_total == count
    keys = list[str]()
    for frame in sent:
        assert frame.ByteSize() <= 1024 * 1024
        keys += [one.key for one in frame.records.records]
        if frame.records.HasField("checkpoint"):
            assert covers[frame.records.checkpoint.cursor] == len(keys)
            assert frame.records.checkpoint.cursor_version == 3
    assert keys == [item.key for item in items if isinstance(item, Record)]
    last = [item.cursor for item in items if isinstance(item, Checkpoint)][-1:]
    told = [f.records.checkpoint.cursor for f in sent if f.records.HasField("checkpoint")][-1:]
    assert told == last, "the last one is never kept back"


async def test_a_single_large_record_travels_alone() -> None:
    sent = await frames(record("a"), record("big", 3 * 1024 * 1024), record("b"))
    assert [[one.key for one in frame.records.records] for frame in sent[:-1]] == [["a"], ["big"], ["b"]]


async def test_a_poll_ends_at_the_checkpoint_after_its_limit() -> None:
    found: list[Found] = [item for n in range(10) for item in (record(f"k{n}"), Checkpoint(b"%d" % n))]
    sent = await frames(*found, request=pb.FetchDataRequest(max_records=4))
    assert sent[-1].end.reason == pb.FetchEnd.REASON_LIMIT
    assert sent[-1].end.records_total == 4
    soft = pb.FetchDataRequest()
    soft.soft_deadline.FromMilliseconds(1)
    clock = iter(range(1000))

    async def every() -> AsyncIterator[Found]:
        for one in found:
            yield one

    timed = Frames(every(), soft, 3, now=lambda: float(next(clock)))
    assert [frame async for frame in timed][-1].end.reason == pb.FetchEnd.REASON_LIMIT


async def test_patience_ends_the_poll_and_nothing_sleeps_long() -> None:
    poll = Poll(stream="items")

    async def impatient() -> AsyncIterator[Found]:
        yield record("a")
        yield Checkpoint(b"1")
        await poll.wait(0.001)
        await poll.wait(120, ThrottleScope("search"))
        yield record("never")

    sent = [frame async for frame in Frames(impatient(), pb.FetchDataRequest(), 3)]
    end = sent[-1].end
    assert (end.reason, end.next_poll_after.seconds) == (pb.FetchEnd.REASON_THROTTLED, 120)
    assert end.throttle_scope.bucket == "search"
    assert sent[0].records.checkpoint.cursor == b"1"
    throttled = await frames(Throttled(timedelta(seconds=7)), record("never"))
    assert len(throttled) == 1
    assert throttled[0].end.next_poll_after.seconds == 7
    later = await frames(CaughtUp(timedelta(seconds=9)))
    assert (later[0].end.reason, later[0].end.next_poll_after.seconds) == (pb.FetchEnd.REASON_CAUGHT_UP, 9)


async def test_who_finds_nothing_lives_and_who_leaves_closes_the_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framing, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(framing, "LIFE_SECONDS", 0.02)
    closed = asyncio.Event()

    async def silent() -> AsyncIterator[Found]:
        try:
            yield record("a")
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = aiter(Frames(silent(), pb.FetchDataRequest(), 3))
    async with asyncio.timeout(30):
        assert (await anext(stream)).records.records[0].key == "a", "it does not wait for more for long"
        assert (await anext(stream)).WhichOneof("frame") == "progress"
        await stream.aclose()  # type: ignore[attr-defined]  # a generator
        await closed.wait()


async def test_what_was_found_before_a_failure_is_sent_first() -> None:
    async def failing() -> AsyncIterator[Found]:
        yield record("a")
        yield Checkpoint(b"1")
        raise Failure(FailureKind.AUTH_FAILED, "BAD")

    stream = aiter(Frames(failing(), pb.FetchDataRequest(), 3))
    first = await anext(stream)
    with pytest.raises(Failure, match="BAD"):
        await anext(stream)
    assert first.records.checkpoint.cursor == b"1"


@pytest.mark.parametrize("found", [Record("", b""), Checkpoint(b"x" * 70_000)])
async def test_what_the_contract_forbids_is_refused_where_it_is_made(found: Found) -> None:
    with pytest.raises(Failure, match="INTERNAL"):
        await frames(found)


class Plain:
    """Generators without async, which may block."""

    def fetch(self, _: Instance, poll: Poll) -> Iterator[Found]:
        yield record(f"{poll.cursor.decode()}/{poll.window is not None}/{poll.start_time}")

    def partitions(self, _: Instance, stream: str) -> list[Partition | BrokenEntry]:
        refused = BrokenEntry("second", Failure(FailureKind.AUTH_FAILED, "BAD"))
        return [*(Partition(f"{stream}-{n}", title="t") for n in (3, 1, 2)), refused]


def serving(plugin: object) -> Fetching:
    instances = Instances()
    instances.put(Instance(id="i", revision=1, settings={}))
    return Fetching(plugin, MANIFEST, instances)


async def test_a_request_is_told_as_a_poll_and_a_strange_cursor_is_refused() -> None:
    served = serving(Plain())
    request = pb.FetchDataRequest(context=CONTEXT, stream="items")
    request.checkpoint.cursor, request.checkpoint.cursor_version = b"7", 3
    request.backfill.start.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    request.backfill.end.FromDatetime(datetime(2026, 1, 2, tzinfo=UTC))
    sent: list[Any] = [frame async for frame in served.fetch_data(request)]
    assert sent[0].records.records[0].key == "7/True/None"
    request.checkpoint.cursor_version = 2
    with pytest.raises(Failure, match="CURSOR_FORMAT"):
        _ = [frame async for frame in served.fetch_data(request)]
    request.stream = "nothing"
    with pytest.raises(Failure, match="STREAM_UNKNOWN"):
        _ = [frame async for frame in served.fetch_data(request)]


async def test_partitions_come_in_pages() -> None:
    served = serving(Plain())
    request = pb.ListPartitionsRequest(context=CONTEXT, stream="items", page_size=2)
    first = await served.list_partitions(request)
    assert [one.id for one in first.partitions] == ["items-1", "items-2"]
    assert [one.slot_entry for one in first.broken] == ["second"]
    request.page_token = first.next_page_token
    second = await served.list_partitions(request)
    assert ([one.id for one in second.partitions], second.next_page_token) == (["items-3"], "")


def test_who_does_not_poll_has_no_such_methods() -> None:
    assert (serving(object()).fetches, serving(object()).lists) == (False, False)
    assert (serving(Plain()).fetches, serving(Plain()).lists) == (True, True)
