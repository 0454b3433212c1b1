"""Reading what is stored: in pages that stand still, by what an event is about, within one's own walls."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.identity import Role
from tests.services.mapper.kit import (
    ADMIN,
    GATEWAY,
    Installation,
    Mapper,
    became,
    deliveries,
    delivery,
    draft,
    member_of,
    settled,
)
from tieline.event.v1.content_pb2 import (
    CATEGORY_DELIVERY,
    CATEGORY_WORK,
    SEVERITY_ERROR,
    SEVERITY_INFO,
    Entity,
)
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1.events_pb2 import GetDeliveryRequest, GetEventRequest, ListEventsRequest
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def told(given: TransformInput) -> TransformOutcome:
    """Number n happened n minutes after noon; two share each minute."""
    number = int(given.key)
    one = draft(
        given,
        type=("jira.issue.created", "github.push", "github.pull_request.merged")[number % 3],
        category=CATEGORY_WORK if number % 3 == 0 else CATEGORY_DELIVERY,
        severity=SEVERITY_ERROR if number % 5 == 0 else SEVERITY_INFO,
        entities=[Entity(kind="repository", id=f"acme/{number % 2}"), Entity(kind="branch", id="main")],
    )
    one.occurred_at.FromDatetime(NOON + timedelta(minutes=number // 2))
    return became(given, one)


def numbers(events: list[Event]) -> list[int]:
    return [int(event.external_key.removeprefix("push/")) for event in events]


@pytest.fixture
async def twenty(installation: Installation, mapper: Mapper) -> Mapper:
    installation.neighbours.answers(told)
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries(range(10)))
        await gateway.accept(deliveries(range(10, 20), connection="jira"))
    await settled(installation)
    return mapper


async def test_pages_make_up_the_whole_and_stand_still(installation: Installation, twenty: Mapper) -> None:
    request = ListEventsRequest(parent="tenants/acme", page_size=3)
    found: list[Event] = []
    async with twenty.as_(member_of("acme", Role.VIEWER)) as ada, twenty.as_(GATEWAY) as gateway:
        while True:
            page = await ada.events.ListEvents(request)
            found += page.events
            if len(found) == 6:
                await gateway.accept([delivery(0, connection="late")])  # it is older than the page
                await settled(installation)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    assert sorted(numbers(found)) == list(range(20))
    assert [event.occurred_at.seconds for event in found] == sorted(
        (event.occurred_at.seconds for event in found), reverse=True
    )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, range(20)),
        ({"types": ["github.push"]}, [n for n in range(20) if n % 3 == 1]),
        ({"types": ["github.*"]}, [n for n in range(20) if n % 3]),
        ({"types": ["github.push", "jira.issue.*"]}, [n for n in range(20) if n % 3 != 2]),
        ({"types": ["git*"]}, []),
        ({"categories": [CATEGORY_WORK]}, [n for n in range(20) if n % 3 == 0]),
        ({"min_severity": SEVERITY_ERROR}, [0, 5, 10, 15]),
        ({"connection": "tenants/acme/connections/jira"}, range(10, 20)),
        (
            {"entities": [Entity(kind="repository", id="acme/1"), Entity(kind="branch", id="main")]},
            range(1, 20, 2),
        ),
        ({"entities": [Entity(kind="repository", id="main")]}, []),
        ({"start_time": NOON + timedelta(minutes=8)}, range(16, 20)),
        ({"end_time": NOON + timedelta(minutes=1)}, [0, 1]),
    ],
)
async def test_all_that_is_set_must_fit(twenty: Mapper, wanted: Any, expected: Any) -> None:
    async with twenty.as_(member_of("acme")) as ada:
        assert sorted(numbers(await ada.list("acme", **wanted))) == list(expected)


async def test_one_tenant_sees_nothing_of_another(installation: Installation, twenty: Mapper) -> None:
    [row] = await installation.rows(
        "select id::text, (select id::text from deliveries limit 1) d from events limit 1"
    )
    event, original = f"tenants/acme/events/{row['id']}", f"tenants/acme/deliveries/{row['d']}"
    async with twenty.as_(member_of("rival")) as eve:
        assert await eve.list("rival") == []
        for attempt in (
            lambda: eve.list("acme"),
            lambda: eve.events.GetEvent(GetEventRequest(name=event)),
            lambda: eve.events.GetDelivery(GetDeliveryRequest(name=original)),
        ):
            with pytest.raises(Problem) as refused:
                await attempt()
            assert refused.value.code is Code.TENANT_FOREIGN
        with pytest.raises(Problem) as missing:
            await eve.events.GetEvent(GetEventRequest(name=event.replace("acme", "rival")))
        assert missing.value.code is Code.NOT_FOUND


async def test_what_is_not_there_is_not_found(twenty: Mapper) -> None:
    async with twenty.as_(ADMIN) as admin:
        for name in ("tenants/acme/events/nonsense", "tenants/acme/events/" + "0" * 32):
            with pytest.raises(Problem) as missing:
                await admin.events.GetEvent(GetEventRequest(name=name))
            assert missing.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_size": -1},
        {"page_token": "bm9uc2Vuc2U="},
        {"page_token": "é"},
        {"text": "word"},
        {"types": ["a\0b"]},
        {"start_time": {"seconds": 10**15}},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(mapper: Mapper, wrong: Any) -> None:
    async with mapper.as_(member_of("acme")) as ada:
        with pytest.raises(Problem) as refused:
            await ada.events.ListEvents(ListEventsRequest(parent="tenants/acme", **wrong))
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_a_token_belongs_to_its_question(twenty: Mapper) -> None:
    async with twenty.as_(member_of("acme")) as ada:
        page = await ada.events.ListEvents(ListEventsRequest(parent="tenants/acme", page_size=3))
        with pytest.raises(Problem) as refused:
            await ada.events.ListEvents(
                ListEventsRequest(
                    parent="tenants/acme", page_token=page.next_page_token, types=["github.push"]
                )
            )
    assert refused.value.code is Code.INVALID_ARGUMENT
