"""Records of polls at the door: once each, in their place, dead where they could not be read, fenced."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from tests.services.mapper.kit import (
    ADMIN,
    GATEWAY,
    Installation,
    Mapper,
    account,
    delivery,
    settled,
)
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, Failure
from tieline.event.v1.event_pb2 import AUTHENTICITY_POLLED
from tieline.mapper.v1.inbox_pb2 import (
    AcceptOutcome,
    AcceptRecordsRequest,
    GetInboxPressureRequest,
    ListBacklogsRequest,
    RecordInput,
)

ACCEPTED, DUPLICATE = AcceptOutcome.RESULT_ACCEPTED, AcceptOutcome.RESULT_DUPLICATE
REGISTRY = Principal(Kind.SERVICE, "services/registry", frozenset({Role.SERVICE}))
UNREADABLE = Failure(kind=FAILURE_KIND_INVALID_INPUT, reason="UNREADABLE", message="half a page")


def record(key: object, version: str = "1", **more: Any) -> RecordInput:
    given = RecordInput(key=str(key), version=version, payload=f'{{"n": "{key}"}}'.encode(), **more)
    given.received_at.FromDatetime(datetime.now(UTC))
    return given


def polled(*records: RecordInput, fence: int = 1, partition: str = "p") -> AcceptRecordsRequest:
    connection = "tenants/acme/connections/github"
    return AcceptRecordsRequest(
        connection=connection, stream="items", partition=partition, records=records, fence=fence
    )


async def results(mapper: Mapper, *requests: AcceptRecordsRequest) -> list[list[int]]:
    async with mapper.as_(REGISTRY) as registry:
        answers = [await registry.inbox.AcceptRecords(request) for request in requests]
    return [[outcome.result for outcome in answer.outcomes] for answer in answers]


async def test_a_record_is_known_by_its_place_key_and_version(
    installation: Installation, mapper: Mapper
) -> None:
    told = await results(
        mapper,
        polled(record(1), record(2), record(1)),
        polled(record(2), record(1, "2"), record("n\0l" * 400)),
        polled(record(1), partition="q"),
    )
    assert told == [[ACCEPTED, ACCEPTED, DUPLICATE], [DUPLICATE, ACCEPTED, ACCEPTED], [ACCEPTED]]
    assert await installation.count("inbox") == 5


async def test_a_record_is_transformed_as_what_it_is(installation: Installation, mapper: Mapper) -> None:
    await results(mapper, polled(record("k", "7")))
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(1)])
    await settled(installation)
    inputs = [
        item for one in installation.neighbours.requests for group in one.groups for item in group.inputs
    ]
    by_channel = {item.WhichOneof("channel"): item for item in inputs}
    item = by_channel["stream"]
    assert (item.stream, item.partition.id, item.key, item.version) == ("items", "p", "k", "7")
    assert by_channel["webhook"].webhook == "webhook"
    async with mapper.as_(ADMIN) as admin:
        (event,) = [one for one in await admin.list("acme") if one.authenticity == AUTHENTICITY_POLLED]
        original = await admin.delivery("acme", event.raw.delivery.rpartition("/")[2])
    assert (original.key, original.record.partition, original.channel) == ("k", "p", "items")


async def test_what_could_not_be_read_is_a_dead_letter_and_never_lost(
    installation: Installation, mapper: Mapper
) -> None:
    broken = [
        RecordInput(key=key, payload=excerpt, failure=UNREADABLE)
        for key, excerpt in [("1", b"\x00\xff"), ("", b"a"), ("", b"b")]
    ]
    told = await results(
        mapper, polled(*broken, record(2, event_type="nul\0")), polled(*broken), polled(record(1, ""))
    )
    assert told == [[ACCEPTED] * 4, [DUPLICATE] * 3, [ACCEPTED]]
    await settled(installation)
    rows = await installation.rows("select reason, stage from dead_letters order by reason")
    assert [(row["reason"], row["stage"]) for row in rows] == [
        ("RECORD_UNUSABLE", 6),
        *[("UNREADABLE", 6)] * 3,
    ]
    assert await account(installation) == {"accepted": 5, "waiting": 0, "stored": 1, "skipped": 0, "dead": 4}


async def test_who_was_taken_over_from_puts_nothing_in(installation: Installation, mapper: Mapper) -> None:
    await results(mapper, polled(record(1), fence=2), polled(fence=3))
    with pytest.raises(Problem) as fenced:
        await results(mapper, polled(record(2), fence=2))
    assert fenced.value.code is Code.CONFLICT
    assert await results(mapper, polled(record(2), fence=2, partition="q")) == [[ACCEPTED]]
    assert await installation.count("inbox") == 2


async def test_the_same_records_at_once_are_kept_once(installation: Installation, mapper: Mapper) -> None:
    batch = [record(number) for number in range(200)]
    requests = [polled(*batch[::step], fence=fence) for step, fence in [(1, 1), (-1, 1), (1, 1), (-1, 1)]]
    told = await asyncio.gather(*(results(mapper, request) for request in requests))
    flat = [one for answer in told for outcomes in answer for one in outcomes]
    assert (flat.count(ACCEPTED), flat.count(DUPLICATE)) == (200, 600)
    assert await installation.count("inbox") == 200


@pytest.mark.parametrize(
    "wrong", [{"connection": "apps/x"}, {"stream": ""}, {"partition": "a\0b"}, {"partition": "x" * 600}]
)
async def test_a_place_that_cannot_be_is_refused(mapper: Mapper, wrong: dict[str, str]) -> None:
    request = polled(record(1))
    for field, value in wrong.items():
        setattr(request, field, value)
    with pytest.raises(Problem) as refused:
        await results(mapper, request)
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_only_who_polls_may_put_records_in_and_may_ask_how_full_it_is(mapper: Mapper) -> None:
    async with mapper.as_(ADMIN) as admin:
        with pytest.raises(Problem) as refused:
            await admin.inbox.AcceptRecords(polled(record(1)))
    assert refused.value.code in {Code.ROLE_MISSING, Code.CALLER_KIND_REFUSED}
    async with mapper.as_(REGISTRY) as registry:
        assert not (await registry.inbox.GetInboxPressure(GetInboxPressureRequest())).hold_bulk


async def test_what_waits_and_what_died_is_told_of_each_connection(
    installation: Installation, mapper: Mapper
) -> None:
    installation.neighbours.refuses_for_now()
    broken = polled(record("dead", failure=UNREADABLE), record("dead too", failure=UNREADABLE))
    await results(mapper, broken)
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(number, "acme", "github") for number in range(3)])
        await gateway.accept([delivery("x", "other", "jira")])
    async with mapper.as_(REGISTRY) as registry:
        first = await registry.inbox.ListBacklogs(ListBacklogsRequest(page_size=1))
        (one,) = first.backlogs
        assert (one.connection, one.waiting, one.dead_letters) == ("tenants/acme/connections/github", 3, 2)
        assert one.oldest_time.ToDatetime(UTC) <= datetime.now(UTC)
        rest = await registry.inbox.ListBacklogs(ListBacklogsRequest(page_token=first.next_page_token))
        (other,) = rest.backlogs
        assert (other.connection, other.waiting, other.dead_letters) == (
            "tenants/other/connections/jira",
            1,
            0,
        )
        assert not rest.next_page_token
    async with mapper.as_(ADMIN) as person:
        with pytest.raises(Problem) as refused:
            await person.inbox.ListBacklogs(ListBacklogsRequest())
        assert refused.value.code is Code.CALLER_KIND_REFUSED
