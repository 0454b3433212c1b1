"""The door: what is let in once, what is not, and that the answer comes after the commit."""

import asyncio
import uuid
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.identity import Role
from foundation.store.bootstrap import bootstrap
from foundation.store.schemas import MAPPER
from foundation.store.walls import gaps
from tests.services.mapper.kit import (
    ADMIN,
    GATEWAY,
    MAPPER_ITSELF,
    PASSWORDS,
    Installation,
    Mapper,
    deliveries,
    delivery,
    member_of,
)
from tieline.common.v1.failure_pb2 import Failure
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, GetInboxPressureRequest

ACCEPTED, DUPLICATE, REFUSED = (
    AcceptOutcome.RESULT_ACCEPTED,
    AcceptOutcome.RESULT_DUPLICATE,
    AcceptOutcome.RESULT_REFUSED,
)


async def test_the_schema_has_no_gap_between_tenants(installation: Installation) -> None:
    await bootstrap(installation.admin, PASSWORDS, [MAPPER])  # a copied database has lost its own grants
    assert await gaps(installation.admin, [MAPPER]) == []


async def test_a_mixed_batch_is_answered_in_its_order(installation: Installation, mapper: Mapper) -> None:
    batch = [delivery(n, tenant=f"tenant-{n % 7}", connection=f"c{n % 3}") for n in range(50)]
    async with mapper.as_(GATEWAY) as gateway:
        outcomes = await gateway.accept(batch)
    assert [outcome.delivery_id for outcome in outcomes] == [given.delivery_id for given in batch]
    rows = await installation.rows("select tenant, id::text, connection from deliveries")
    assert {(row["tenant"], row["id"]) for row in rows} == {
        (f"tenant-{n % 7}", given.delivery_id) for n, given in enumerate(batch)
    }
    assert all(row["connection"].startswith(f"tenants/{row['tenant']}/") for row in rows)


async def test_two_alike_in_one_batch_are_one(installation: Installation, mapper: Mapper) -> None:
    first, second, other = delivery(1), delivery(1), delivery(1, connection="elsewhere")
    async with mapper.as_(GATEWAY) as gateway:
        outcomes = await gateway.accept([first, second, other, first])
    assert [outcome.result for outcome in outcomes] == [ACCEPTED, DUPLICATE, ACCEPTED, DUPLICATE]
    assert [outcome.delivery_id for outcome in outcomes] == [
        first.delivery_id,
        first.delivery_id,
        other.delivery_id,
        first.delivery_id,
    ]
    assert await installation.count("inbox") == await installation.count("deliveries") == 2


async def test_a_call_that_is_sent_again_finds_itself(mapper: Mapper) -> None:
    batch = deliveries(range(10))
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(batch)
        again = await gateway.accept(batch)
    assert [(o.result, o.delivery_id) for o in again] == [(DUPLICATE, given.delivery_id) for given in batch]


async def test_an_id_that_is_taken_harms_only_its_own(installation: Installation, mapper: Mapper) -> None:
    taken = str(uuid.uuid4())
    async with mapper.as_(GATEWAY) as gateway:
        first = await gateway.accept([delivery(1, delivery_id=taken), delivery(2, delivery_id=taken)])
        later = await gateway.accept([delivery(3, delivery_id=taken), delivery(4)])
    assert [outcome.result for outcome in first] == [ACCEPTED, REFUSED]
    assert [outcome.result for outcome in later] == [REFUSED, ACCEPTED]
    assert later[0].failure.reason == "DELIVERY_ID_TAKEN"
    assert await installation.count("deliveries") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"connection": "apps/acme"},
        {"connection": "tenants//connections/x"},
        {"webhook": ""},
        {"provider_delivery_id": ""},
        {"provider_delivery_id": "x" * 3000},
        {"provider_delivery_id": "a\0b"},
        {"event_type": "pu\0sh"},
        {"delivery_id": "seven"},
        {"received_at": {"seconds": 10**15}},
        {"query": "q" * 20_000},
    ],
)
async def test_one_that_cannot_be_kept_is_refused_alone(mapper: Mapper, wrong: dict[str, Any]) -> None:
    async with mapper.as_(GATEWAY) as gateway:
        outcomes = await gateway.accept([delivery(1), delivery(2, **wrong), delivery(3)])
    assert [outcome.result for outcome in outcomes] == [ACCEPTED, REFUSED, ACCEPTED]
    assert outcomes[1].failure.message


async def test_the_same_deliveries_at_once_and_in_another_order_are_kept_once(
    installation: Installation, mapper: Mapper
) -> None:
    numbers = list(range(200))
    batches = [deliveries(numbers[::step]) for step in (1, -1, 1, -1, 1, -1)]
    async with mapper.as_(GATEWAY) as gateway:
        answers = await asyncio.gather(*(gateway.accept(batch) for batch in batches))
    assert await installation.count("deliveries") == 200
    results = [outcome.result for outcomes in answers for outcome in outcomes]
    assert (results.count(ACCEPTED), results.count(DUPLICATE)) == (200, 1000)
    ids = {row["id"] for row in await installation.rows("select id::text from deliveries")}
    assert {outcome.delivery_id for outcomes in answers for outcome in outcomes} == ids


async def test_headers_that_are_no_text_come_back_as_they_came(mapper: Mapper) -> None:
    given = delivery(1, body=b"\x00\xff")
    given.headers.add(name="x-odd", value=b"\x00\xfe")
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(ADMIN) as admin:
        [outcome] = await gateway.accept([given])
        kept = await admin.delivery("acme", outcome.delivery_id)
    assert (kept.body, kept.headers[0].value, kept.key) == (b"\x00\xff", b"\x00\xfe", "1")


async def test_only_the_edge_may_put_something_in(mapper: Mapper) -> None:
    for principal in (member_of("acme", Role.TENANT_ADMIN), ADMIN, MAPPER_ITSELF):
        async with mapper.as_(principal) as caller:
            with pytest.raises(Problem) as refused:
                await caller.accept(deliveries([1]))
        assert refused.value.code in (Code.ROLE_MISSING, Code.CALLER_KIND_REFUSED)


async def test_how_full_it_is_can_be_asked(installation: Installation, mapper: Mapper) -> None:
    installation.neighbours.refuses_for_now()
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept(deliveries(range(5)))
        pressure = await gateway.inbox.GetInboxPressure(GetInboxPressureRequest())
    assert [lane.waiting for lane in pressure.lanes] == [5]
    assert not pressure.hold_bulk


async def test_what_an_app_could_not_route_is_its_owners_dead_letter(
    installation: Installation, mapper: Mapper
) -> None:
    lost = delivery(1, app_owner="tenants/platform", account_key="42")
    lost.connection = "apps/github"
    nobodys, strange = delivery(2), delivery(3, app_owner="tenants/platform/connections/x")
    nobodys.connection = strange.connection = "apps/github"
    async with mapper.as_(GATEWAY) as gateway:
        outcomes = await gateway.accept([lost, lost, nobodys, strange, delivery(4, account_key="7")])
    assert [outcome.result for outcome in outcomes] == [ACCEPTED, DUPLICATE, REFUSED, REFUSED, ACCEPTED]
    [letter] = await installation.rows("select * from dead_letters")
    assert (letter["tenant"], letter["connection"], letter["reason"]) == (
        "platform",
        "apps/github",
        "ACCOUNT_UNKNOWN",
    )
    assert letter["stage"] == DeadLetter.STAGE_ROUTE
    assert "apps/github receives for the account 42" in Failure.FromString(letter["failure"]).message
    rows = await installation.rows("select tenant, account_key, body from deliveries order by account_key")
    assert [(row["tenant"], row["account_key"]) for row in rows] == [("platform", "42"), ("acme", "7")]
    assert rows[0]["body"] == lost.body
