"""What becomes of a delivery, whatever a plugin answers."""

import asyncio
from typing import Any

import nats
import pytest

from services.mapper.bus import STREAM
from tests.services.mapper.kit import (
    GATEWAY,
    Installation,
    Mapper,
    account,
    became,
    deliveries,
    delivery,
    draft,
    each,
    member_of,
    settled,
    until,
)
from tieline.common.v1 import failure_pb2
from tieline.common.v1.failure_pb2 import Failure
from tieline.event.v1.content_pb2 import Entity
from tieline.event.v1.event_pb2 import AUTHENTICITY_UNVERIFIED, AUTHENTICITY_VERIFIED, Event
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataRequest, TransformDataResponse

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def fails(given: TransformInput, kind: failure_pb2.FailureKind.ValueType, **more: Any) -> TransformOutcome:
    return TransformOutcome(input_id=given.input_id, failure=Failure(kind=kind, **more))


async def test_an_event_is_stamped_by_the_platform(installation: Installation, mapper: Mapper) -> None:
    commit = Entity(kind="commit", id="abc", part=Entity.PART_SUBJECT)
    installation.neighbours.answers(lambda given: became(given, *[draft(given, entities=[commit])] * 2))
    signed, open_ = delivery(1), delivery(2, verified=False)
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme")) as ada:
        await gateway.accept([signed, open_])
        await settled(installation)
        events = {(event.external_key, event.ordinal): event for event in await ada.list("acme")}
        assert set(events) == {("push/1", 0), ("push/1", 1), ("push/2", 0), ("push/2", 1)}
        event = events["push/1", 1]
        original = await ada.delivery("acme", event.raw.delivery.rpartition("/")[2])
    assert (event.tenant, event.connection) == ("tenants/acme", "tenants/acme/connections/github")
    assert (event.source.plugin, event.source.version, event.source.channel) == ("github", "1.2.3", "webhook")
    assert (event.schema_version, event.received_at) == (1, signed.received_at)
    assert event.occurred_at == event.received_at
    assert event.stored_at.ToDatetime() >= event.received_at.ToDatetime()
    assert event.authenticity == AUTHENTICITY_VERIFIED
    assert events["push/2", 0].authenticity == AUTHENTICITY_UNVERIFIED
    assert (original.body, original.sha256) == (signed.body, event.raw.sha256)
    assert event.raw.size_bytes == len(signed.body)
    assert await installation.count("entities") == 4


async def test_what_says_nothing_is_skipped_with_its_reason(
    installation: Installation, mapper: Mapper
) -> None:
    installation.neighbours.answers(
        lambda given: TransformOutcome(
            input_id=given.input_id, skipped=TransformOutcome.Skipped(reason="PING")
        )
    )
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(1)])
    await settled(installation)
    assert [row["reason"] for row in await installation.rows("select reason from inbox")] == ["PING"]
    assert (await account(installation))["skipped"] == 1


@pytest.mark.parametrize(
    ("outcome", "stage", "reason", "attempts"),
    [
        (
            lambda given: fails(given, failure_pb2.FAILURE_KIND_INVALID_INPUT, reason="NO_COMMITS"),
            DeadLetter.STAGE_TRANSFORM,
            "NO_COMMITS",
            1,
        ),
        (
            lambda given: fails(given, failure_pb2.FAILURE_KIND_INVALID_INPUT, reason="POISON"),
            DeadLetter.STAGE_POISON,
            "POISON",
            1,
        ),
        (
            lambda given: fails(given, failure_pb2.FAILURE_KIND_INTERNAL, reason="KEY_ERROR"),
            DeadLetter.STAGE_TRANSFORM,
            "KEY_ERROR",
            3,
        ),
        (
            lambda given: became(given, draft(given, title="")),
            DeadLetter.STAGE_VALIDATE,
            "EVENT_INVALID",
            1,
        ),
        (
            lambda given: became(given, *[draft(given)] * 1001),
            DeadLetter.STAGE_VALIDATE,
            "EVENTS_TOO_MANY",
            1,
        ),
        (lambda _: None, DeadLetter.STAGE_TRANSFORM, "OUTCOME_MISSING", 3),
        (
            lambda given: TransformOutcome(input_id=given.input_id),
            DeadLetter.STAGE_TRANSFORM,
            "OUTCOME_MISSING",
            3,
        ),
        (
            lambda _: TransformOutcome(input_id="another", skipped=TransformOutcome.Skipped(reason="X")),
            DeadLetter.STAGE_TRANSFORM,
            "OUTCOME_MISSING",
            3,
        ),
        (
            lambda given: TransformOutcome(
                input_id=given.input_id, events=TransformOutcome.EventDrafts(drafts=[])
            ),
            DeadLetter.STAGE_TRANSFORM,
            "OUTCOME_EMPTY",
            3,
        ),
    ],
)
async def test_what_can_never_work_becomes_a_dead_letter_alone(
    installation: Installation,
    mapper: Mapper,
    *,
    outcome: Any,
    stage: DeadLetter.Stage.ValueType,
    reason: str,
    attempts: int,
) -> None:
    installation.neighbours.answers(lambda given: outcome(given) if given.key == "2" else became(given))
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries([1, 2, 3]))
    await settled(installation)
    [letter] = await installation.rows("select * from dead_letters")
    assert (letter["stage"], letter["reason"], letter["attempts"]) == (stage, reason, attempts)
    failure = Failure.FromString(letter["failure"])
    assert failure.reason == reason
    [original] = await installation.rows("select body from deliveries where id = $1", letter["delivery"])
    assert b'"2"' in original["body"]
    assert await account(installation) == {"accepted": 3, "waiting": 0, "stored": 2, "skipped": 0, "dead": 1}


async def test_what_fails_for_now_waits_and_nothing_else_waits_with_it(
    installation: Installation, mapper: Mapper
) -> None:
    down = asyncio.Event()
    down.set()

    async def answer(request: TransformDataRequest) -> TransformDataResponse:
        response = each(request)
        for group, result in zip(request.groups, response.results, strict=True):
            if down.is_set() and group.ref.connection.endswith("/slack"):
                failure = Failure(kind=failure_pb2.FAILURE_KIND_TRANSIENT, reason="PLUGIN_DOWN")
                result.CopyFrom(TransformDataResponse.Result(failure=failure))
        return response

    installation.neighbours.answer = answer
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries(range(30), connection="slack"))
        await gateway.accept(deliveries(range(30), connection="github"))

        async def others_done() -> bool:
            return await installation.count("inbox", "connection like '%github' and state = 1") == 30

        await until(others_done)
        assert await account(installation) == {
            "accepted": 60,
            "waiting": 30,
            "stored": 30,
            "skipped": 0,
            "dead": 0,
        }
        down.clear()
    await settled(installation)
    assert await installation.count("inbox", "state = 1") == 60


async def test_a_provider_that_asks_for_patience_gets_it(installation: Installation, mapper: Mapper) -> None:
    limited = Failure(kind=failure_pb2.FAILURE_KIND_RATE_LIMITED, reason="SECONDARY")
    limited.retry_after.FromMilliseconds(700)
    times: list[float] = []

    async def answer(request: TransformDataRequest) -> TransformDataResponse:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            return TransformDataResponse(results=[TransformDataResponse.Result(failure=limited)])
        return each(request)

    installation.neighbours.answer = answer
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(1)])
    await settled(installation)
    assert times[1] - times[0] >= 0.7


async def test_a_malformed_answer_is_asked_for_again(installation: Installation, mapper: Mapper) -> None:
    answers = iter(
        [TransformDataResponse(), TransformDataResponse(results=[TransformDataResponse.Result()] * 3)]
    )

    async def answer(request: TransformDataRequest) -> TransformDataResponse:
        return next(answers, None) or each(request)

    installation.neighbours.answer = answer
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(1), delivery(1, connection="slack")])
    await settled(installation)
    assert (await account(installation))["stored"] == 2


async def test_an_answer_too_large_for_a_message_is_asked_for_in_parts(
    installation: Installation, mapper: Mapper
) -> None:
    def outcome(given: TransformInput) -> TransformOutcome:
        size = 60 * 1024 if given.key == "7" else 10
        evidence = [{"kind": "log", "description": "x" * size}] * (50 if given.key == "7" else 1)
        return became(given, *[draft(given, evidence=evidence)] * 12)

    installation.neighbours.answers(outcome)
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries(range(12)))
    await settled(installation)
    [letter] = await installation.rows("select * from dead_letters")
    assert letter["reason"] == "RESULT_TOO_LARGE"
    assert (await account(installation))["stored"] == 11


async def test_order_holds_within_a_connection_past_failures(
    installation: Installation, mapper: Mapper
) -> None:
    failed: set[str] = set()

    def outcome(given: TransformInput) -> TransformOutcome:
        # Every fifth fails the first time it is seen, while those behind it would succeed.
        if int(given.key) % 5 == 0 and given.key not in failed:
            failed.add(given.key)
            return fails(given, failure_pb2.FAILURE_KIND_TRANSIENT)
        return became(given)

    installation.neighbours.answers(outcome)
    async with mapper.as_(GATEWAY) as gateway:
        for start in range(0, 40, 10):
            await gateway.accept(deliveries(range(start, start + 10)))
    await settled(installation, within=60)
    rows = await installation.rows(
        "select e.content from outbox o join events e on e.id = o.event order by queued"
    )
    keys = [int(Event.FromString(row["content"]).external_key.removeprefix("push/")) for row in rows]
    assert keys == list(range(40))


async def test_the_trace_goes_all_the_way(installation: Installation, mapper: Mapper) -> None:
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(1, traceparent=TRACE)])
    await settled(installation)
    assert TRACE.split("-")[1] in installation.neighbours.traces[0]

    async def published() -> bool:
        return await installation.count("outbox", "published_at is not null") == 1

    await until(published)
    client = await nats.connect(installation.nats)
    message = await client.jetstream().get_msg(STREAM, seq=1)
    await client.close()
    assert message.headers is not None
    assert message.headers["traceparent"] == TRACE
    [event] = await installation.rows("select id::text, type from events")
    assert message.headers["Nats-Msg-Id"] == event["id"]
    assert message.subject == "events.acme.info.delivery.github.push"
