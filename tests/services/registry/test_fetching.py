"""Polls, partitions and webhooks: what passes through the broker, and what does not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.failures import CallFailed
from services.registry.broker.fetching import Fetching
from services.registry.broker.serving import Served
from services.registry.broker.verifying import Verifying
from tests.services.registry.asked import asking, connected
from tests.services.registry.raw import calls, ref
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.plugin.v1.fetch_pb2 import (
    Checkpoint,
    FetchDataRequest,
    FetchDataResponse,
    ListPartitionsRequest,
    Partition,
)
from tieline.plugin.v1.verify_pb2 import VerifyWebhookRequest

ONE = connected(1)


async def frames(
    broker: Broker, one: Served, silence: float = 20.0, **more: object
) -> list[FetchDataResponse]:
    fields: dict[str, Any] = {"stream": "items"} | more
    request = FetchDataRequest(**fields)
    fetching = Fetching(broker.calls, silence)
    async with aclosing(fetching.fetch(ref(one), request, 60.0)) as polled:
        return [frame async for frame in polled]


async def test_frames_pass_through_from_the_checkpoint_to_the_end(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        got = await frames(broker, ONE, checkpoint=Checkpoint(cursor=b"900"))
    assert [frame.WhichOneof("frame") for frame in got] == ["records"] * 5 + ["end"]
    assert got[-1].end.records_total == 100


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("keyless", "KEY_MISSING"),
        ("large", "FRAME_TOO_LARGE"),
        ("huge cursor", "CHECKPOINT_TOO_LARGE"),
        ("empty", "FRAME_EMPTY"),
        ("unended", "END_MISSING"),
        ("miscounted", "RECORDS_MISSING"),
        ("twice", "FRAME_AFTER_END"),
    ],
)
async def test_a_stream_that_breaks_the_contract_fails(tmp_path: Path, word: str, reason: str) -> None:
    one = connected(1, word)
    async with asking(tmp_path, one) as (broker, _):
        with pytest.raises(CallFailed) as failed:
            await frames(broker, one)
    assert (failed.value.failure.kind, failed.value.failure.reason) == (
        FailureKind.FAILURE_KIND_INTERNAL,
        reason,
    )


async def test_a_plugin_that_falls_silent_is_left_and_hears_of_it(tmp_path: Path) -> None:
    one = connected(1, "silent")
    async with asking(tmp_path, one) as (broker, _):
        with pytest.raises(CallFailed, match="TOO_SLOW"):
            await frames(broker, one, silence=2.0)
        await until(lambda: calls(tmp_path, "cancelled"))


async def test_who_leaves_early_ends_the_plugins_stream(tmp_path: Path) -> None:
    one = connected(1, "slow")
    async with asking(tmp_path, one) as (broker, _):
        request = FetchDataRequest(stream="items")
        async with aclosing(broker.fetching.fetch(ref(one), request, 60.0)) as polled:
            await anext(polled)
        await until(lambda: calls(tmp_path, "cancelled"))
        task = asyncio.create_task(frames(broker, connected(1, "slow")))
        await until(lambda: len(calls(tmp_path, "FetchData")) == 2)
        task.cancel()
        await until(lambda: len(calls(tmp_path, "cancelled")) == 2)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"stream": "unheard-of"}, "STREAM_UNKNOWN"),
        ({"partition": Partition(id="p")}, "PARTITION_UNEXPECTED"),
        ({"stream": "parts", "partition": Partition(id="p" * 600)}, "PARTITION_INVALID"),
        ({"checkpoint": Checkpoint(cursor=b"x" * 70_000)}, "CHECKPOINT_INVALID"),
        ({"backfill": FetchDataRequest.Window()}, "BACKFILL_UNKNOWN"),
    ],
)
async def test_what_the_manifest_does_not_declare_is_not_asked(
    tmp_path: Path, more: dict[str, Any], reason: str
) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        with pytest.raises(CallFailed, match=reason):
            await frames(broker, ONE, **more)
    assert not calls(tmp_path, "FetchData")


async def test_partitions_come_by_pages_and_all_of_them_as_one(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        first = await broker.fetching.partitions(ref(ONE), ListPartitionsRequest(stream="parts"))
        assert (len(first.partitions), first.next_page_token) == (500, "500")
        whole = await broker.fetching.all_partitions(ref(ONE), "parts")
        assert [one.id for one in whole.partitions] == [f"p{number}" for number in range(1200)]
        alone = await broker.fetching.all_partitions(ref(ONE), "items")
        assert list(alone.partitions) == [Partition()]


@pytest.mark.parametrize(
    ("word", "reason"), [("endless", "LISTING_ENDLESS"), ("nameless", "PARTITION_INVALID")]
)
async def test_a_listing_that_cannot_be_is_a_defect(tmp_path: Path, word: str, reason: str) -> None:
    one = connected(1, word)
    async with asking(tmp_path, one) as (broker, _):
        with pytest.raises(CallFailed, match=reason):
            await broker.fetching.all_partitions(ref(one), "parts")


async def test_anything_but_a_clear_yes_is_a_no(tmp_path: Path) -> None:
    verdicts = {}
    async with asking(tmp_path, ONE) as (broker, _):
        patient = Verifying(broker.calls, longest=30.0)  # the first call waits for the plugin to start
        for body in (b"yes", b"no", b"hello", b"redirect", b"", b"fail"):
            answer = await patient.verify(ref(ONE), _webhook(body), 30.0)
            verdicts[body] = answer.WhichOneof("verdict")
        for body in (b"hang", b"die"):
            answer = await broker.verifying.verify(ref(ONE), _webhook(body), 30.0)
            verdicts[body] = answer.WhichOneof("verdict")
        stranger = await broker.verifying.verify(ref(connected(9)), _webhook(b"yes"), 30.0)
        assert stranger.rejected.reason == "CONNECTION_UNKNOWN"
    assert verdicts == {
        b"yes": "accepted",
        b"hello": "challenge",
        **dict.fromkeys((b"no", b"redirect", b"", b"fail", b"hang", b"die"), "rejected"),
    }


def _webhook(body: bytes) -> VerifyWebhookRequest:
    return VerifyWebhookRequest(webhook="events", method="POST", body=body)
