"""Cursors that survive, windows that hold, filters that choose, and walls between tenants."""

import asyncio
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from foundation.errors import Code, Problem
from foundation.identity import Role
from foundation.process.testing import until
from tests.services.mapper.kit import (
    GATEWAY,
    Caller,
    Installation,
    Mapper,
    became,
    deliveries,
    delivery,
    draft,
    member_of,
)
from tieline.event.v1.content_pb2 import SEVERITY_DEBUG, SEVERITY_ERROR, Entity
from tieline.mapper.v1.subscriptions_pb2 import (
    AcknowledgeEventsRequest,
    CreateSubscriptionRequest,
    EventFilter,
    GetSubscriptionRequest,
    SubscribeRequest,
    SubscribeResponse,
    Subscription,
)
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome

ALL = "tenants/acme/subscriptions/all"


def subscribe(caller: Caller, **wanted: Any) -> Any:
    request = SubscribeRequest(**({"parent": "tenants/acme", "subscription": ALL} | wanted))
    return caller.subscriptions.Subscribe(request)


async def told(stream: Any, count: int) -> list[SubscribeResponse]:
    """Responses until so many events have come."""
    responses: list[SubscribeResponse] = []
    try:
        async with asyncio.timeout(30):
            async for response in stream:
                responses.append(response)
                if sum(len(one.events) for one in responses) >= count:
                    break
    finally:
        stream.cancel()
    return responses


def keys(responses: list[SubscribeResponse]) -> list[str]:
    return [event.external_key for response in responses for event in response.events]


async def acknowledge(caller: Caller, token: str, name: str = ALL) -> None:
    await caller.subscriptions.AcknowledgeEvents(AcknowledgeEventsRequest(name=name, ack_token=token))


async def test_what_was_not_acknowledged_comes_again(installation: Installation, mapper: Mapper) -> None:
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme", Role.OPERATOR)) as ada:
        await gateway.accept([delivery("before")])
        await installation.published(1)
        await ada.subscribe("acme", "all")
        await gateway.accept([delivery(1)])
        first = await told(subscribe(ada), 1)
        assert keys(first) == ["push/1"]  # what was before is not told
        assert keys(await told(subscribe(ada), 1)) == ["push/1"]
        await acknowledge(ada, first[-1].ack_token)
        await gateway.accept([delivery(2)])
        second = await told(subscribe(ada), 1)
        assert keys(second) == ["push/2"]
        await acknowledge(ada, second[-1].ack_token)
        await acknowledge(ada, first[-1].ack_token)  # an older one moves nothing
        await gateway.accept([delivery(3)])
        assert keys(await told(subscribe(ada), 1)) == ["push/3"]


async def test_so_many_are_told_without_being_acknowledged_and_no_more(
    installation: Installation, mapper: Mapper
) -> None:
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", "all")
        await gateway.accept(deliveries(range(25)))
        await installation.published(25)
        heard: list[str] = []
        async with asyncio.timeout(30):
            async for response in subscribe(ada, max_unacknowledged=10):
                heard += keys([response])
                assert len(response.events) <= 10
                await asyncio.sleep(0.15)  # nothing more may come before the next line
                await acknowledge(ada, response.ack_token)
                if len(heard) == 25:
                    break
    assert heard == [f"push/{n}" for n in range(25)]


async def test_a_full_window_is_silent(installation: Installation, mapper: Mapper) -> None:
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", "all")
        await gateway.accept(deliveries(range(5)))
        await installation.published(5)
        heard: list[str] = []

        async def listen() -> None:
            async for response in subscribe(ada, max_unacknowledged=3):
                heard.extend(keys([response]))

        listening = asyncio.create_task(listen())
        await until(lambda: len(heard) >= 3)
        # Long enough for somebody else to ask, to be told of all there was and of one that came only now.
        await gateway.accept([delivery(5)])
        await told(subscribe(ada, subscription="", start_time=Timestamp()), 6)
        assert not listening.done()
        listening.cancel()
    assert heard == ["push/0", "push/1", "push/2"]


def kinds(given: TransformInput) -> TransformOutcome:
    loud = given.key == "2"
    return became(
        given,
        draft(
            given,
            type="github.deployment.failed" if loud else "github.push",
            severity=SEVERITY_ERROR if loud else SEVERITY_DEBUG,
            entities=[Entity(kind="repository", id="acme/shop" if loud else "acme/blog")],
        ),
    )


@pytest.mark.parametrize(
    "wanted",
    [
        EventFilter(types=["github.deployment.*"]),
        EventFilter(types=["github.deployment.failed", "gitlab.*"]),
        EventFilter(min_severity=SEVERITY_ERROR),
        EventFilter(entities=[Entity(kind="repository", id="acme/shop"), Entity(kind="x", id="y")]),
    ],
)
async def test_a_filter_chooses_and_the_cursor_passes_what_it_leaves_out(
    installation: Installation, mapper: Mapper, wanted: EventFilter
) -> None:
    installation.neighbours.answers(kinds)
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", "all", filter=wanted)
        await gateway.accept(deliveries(range(5)))
        await installation.published(5)
        responses = await told(subscribe(ada), 1)
    assert keys(responses) == ["push/2"]


async def test_without_a_subscription_from_now_or_from_a_time(
    installation: Installation, mapper: Mapper
) -> None:
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme", Role.VIEWER)) as ada:
        await gateway.accept([delivery(1)])
        await installation.published(1)
        past = SubscribeRequest(parent="tenants/acme", subscription="")
        past.start_time.FromSeconds(0)
        assert keys(await told(ada.subscriptions.Subscribe(past), 1)) == ["push/1"]
        now = asyncio.create_task(told(subscribe(ada, subscription=""), 1))
        number = 2
        while not now.done():  # the stream may begin a moment after it was asked for
            await gateway.accept([delivery(number)])
            number += 1
            await asyncio.sleep(0.05)
        assert "push/1" not in keys(await now)


async def test_no_tenant_hears_another(installation: Installation, mapper: Mapper) -> None:
    async with (
        mapper.as_(GATEWAY) as gateway,
        mapper.as_(member_of("acme")) as ada,
        mapper.as_(member_of("rival")) as eve,
    ):
        await ada.subscribe("acme", "all")
        await eve.subscribe("rival", "all")
        await gateway.accept([delivery(1, tenant="acme"), delivery(2, tenant="rival")])
        await installation.published(2)
        rivals = "tenants/rival/subscriptions/all"
        assert keys(await told(subscribe(eve, parent="tenants/rival", subscription=rivals), 1)) == ["push/2"]
        for attempt in (
            lambda: told(subscribe(eve), 1),
            lambda: told(subscribe(eve, parent="tenants/rival"), 1),
            lambda: told(subscribe(eve, subscription=""), 1),
            lambda: acknowledge(eve, "MTox"),
            lambda: eve.subscriptions.GetSubscription(GetSubscriptionRequest(name=ALL)),
            lambda: eve.subscribe("acme", "mine"),
        ):
            with pytest.raises(Problem) as refused:
                await attempt()
            assert refused.value.code is Code.TENANT_FOREIGN


async def test_creating_again_with_the_same_request_answers_the_same(mapper: Mapper) -> None:
    request = CreateSubscriptionRequest(
        parent="tenants/acme",
        subscription_id="all",
        subscription=Subscription(title="All"),
        request_id="5c5e4f6e-4dbc-4d0c-9a6b-0c7a7a8a1f11",
    )
    async with mapper.as_(member_of("acme")) as ada:
        first = await ada.subscriptions.CreateSubscription(request)
        again = await ada.subscriptions.CreateSubscription(request)
        read = await ada.subscriptions.GetSubscription(GetSubscriptionRequest(name=first.name))
        assert first == again == read
        assert (first.name, first.title) == (ALL, "All")
        with pytest.raises(Problem) as taken:
            await ada.subscribe("acme", "all")
        assert taken.value.code is Code.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("identity", "wanted"),
    [
        ("Not An Id", {}),
        ("x", {"filter": EventFilter(condition="true")}),
        ("x", {"push": Subscription.Push(url="https://example.com")}),
        ("x", {"title": "t" * 300}),
    ],
)
async def test_what_cannot_be_kept_to_is_refused(mapper: Mapper, identity: str, wanted: Any) -> None:
    async with mapper.as_(member_of("acme")) as ada:
        with pytest.raises(Problem) as refused:
            await ada.subscribe("acme", identity, **wanted)
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_a_token_that_nobody_gave_is_refused(mapper: Mapper) -> None:
    async with mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", "all")
        for token in ("", "later", "MTotMQ==", "Mjox"):
            with pytest.raises(Problem) as refused:
                await acknowledge(ada, token)
            assert refused.value.code is Code.INVALID_ARGUMENT
        with pytest.raises(Problem) as missing:
            await acknowledge(ada, "MTox", "tenants/acme/subscriptions/none")
        assert missing.value.code is Code.NOT_FOUND
