"""From a delivery to a subscriber, every part real but the plugin."""

from services.mapper.names import event_id
from tests.services.mapper.kit import (
    GATEWAY,
    Installation,
    Listener,
    Mapper,
    deliveries,
    delivery,
    member_of,
    until,
)
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome


async def test_what_is_accepted_becomes_an_event_and_is_told(mapper: Mapper) -> None:
    async with mapper.as_(GATEWAY) as gateway, mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", "all")
        async with Listener(mapper, "acme", "all").listening() as listener:
            outcomes = await gateway.accept(deliveries(range(20)))
            assert {outcome.result for outcome in outcomes} == {AcceptOutcome.RESULT_ACCEPTED}

            async def all_heard() -> bool:
                return len(listener.ids) == 20

            await until(all_heard)
            stored = await ada.list("acme")
    connection = "tenants/acme/connections/github"
    assert {event.id for event in stored} == listener.ids
    assert {event.id for event in stored} == {str(event_id(connection, f"push/{n}", 0)) for n in range(20)}


async def test_a_repeat_is_answered_with_the_first_ones_id(
    installation: Installation, mapper: Mapper
) -> None:
    first, again = delivery(1), delivery(1)
    async with mapper.as_(GATEWAY) as gateway:
        [kept] = await gateway.accept([first])
        [repeat] = await gateway.accept([again])
    assert (kept.result, kept.delivery_id) == (AcceptOutcome.RESULT_ACCEPTED, first.delivery_id)
    assert (repeat.result, repeat.delivery_id) == (AcceptOutcome.RESULT_DUPLICATE, first.delivery_id)
    assert await installation.count("deliveries") == 1
