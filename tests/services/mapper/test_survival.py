"""Whatever dies while it works: every event is stored exactly once, and every subscriber hears each at least once."""

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.engines.testing import CARELESS, quick_directory
from foundation.errors import Problem
from foundation.store.bootstrap import bootstrap
from foundation.store.migrate import migrate
from foundation.store.schemas import MAPPER
from foundation.store.url import DatabaseUrl
from services.mapper.names import event_id
from tests.services.mapper.kit import (
    GATEWAY,
    PASSWORDS,
    Caller,
    Installation,
    Listener,
    Mapper,
    account,
    deliveries,
    delivery,
    each,
    forget_stream,
    member_of,
    neighbours,
    settled,
    until,
)
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome
from tieline.mapper.v1.subscriptions_pb2 import SubscribeRequest
from tieline.registry.v1.broker_pb2 import TransformDataRequest, TransformDataResponse

CONNECTION = "tenants/acme/connections/github"


async def insist(gateway: Caller, numbers: list[int]) -> None:
    """As the gateway does: send until an answer comes; what is there already answers DUPLICATE."""
    batch = deliveries(numbers)
    while True:
        try:
            outcomes = await gateway.accept(batch)
        except Problem:
            await asyncio.sleep(0.1)
            continue
        known = {AcceptOutcome.RESULT_ACCEPTED, AcceptOutcome.RESULT_DUPLICATE}
        assert {outcome.result for outcome in outcomes} <= known
        return


async def send(mapper: Mapper, numbers: range, pause: float = 0.0) -> None:
    async with mapper.as_(GATEWAY) as gateway:
        for start in range(numbers.start, numbers.stop, 10):
            await insist(gateway, list(range(start, min(start + 10, numbers.stop))))
            await asyncio.sleep(pause)


async def all_stored_once(installation: Installation, count: int) -> set[str]:
    await settled(installation, within=60)
    rows = await installation.rows("select id::text from events")
    expected = {str(event_id(CONNECTION, f"push/{n}", 0)) for n in range(count)}
    assert {row["id"] for row in rows} == expected
    assert await account(installation) == {
        "accepted": count,
        "waiting": 0,
        "stored": count,
        "skipped": 0,
        "dead": 0,
    }
    return expected


async def all_heard(listener: Listener, expected: set[str]) -> None:
    async def every_one() -> bool:
        return listener.ids >= expected

    await until(every_one, 60.0)
    assert listener.ids == expected


async def subscribe(mapper: Mapper, name: str) -> Listener:
    async with mapper.as_(member_of("acme")) as ada:
        await ada.subscribe("acme", name)
    return Listener(mapper, "acme", name)


async def test_a_mapper_that_is_killed_while_it_works_loses_and_doubles_nothing(
    installation: Installation,
) -> None:
    async def slowly(request: TransformDataRequest) -> TransformDataResponse:
        await asyncio.sleep(random.uniform(0, 0.05))  # noqa: S311  any moment will do
        return each(request)

    installation.neighbours.answer = slowly
    async with installation.process() as process:
        listener = await subscribe_when_ready(process, "all")
        async with listener.listening():
            sending = asyncio.create_task(send(process, range(400), pause=0.02))
            for _ in range(3):
                await asyncio.sleep(random.uniform(0.3, 1.0))  # noqa: S311
                await process.end(signal.SIGKILL)
                await process.start()
            await sending
            await all_heard(listener, await all_stored_once(installation, 400))


async def subscribe_when_ready(mapper: Mapper, name: str) -> Listener:
    listener: list[Listener] = []

    async def made() -> bool:
        try:
            listener.append(await subscribe(mapper, name))
        except Problem:
            return False
        return True

    await until(made)
    return listener[0]


async def test_two_mappers_share_the_work_and_one_takes_over_what_the_other_leaves(
    installation: Installation,
) -> None:
    async with installation.mapper() as stays, installation.process() as dies:
        listener = await subscribe_when_ready(stays, "all")

        async def shared() -> bool:
            rows = await installation.rows(
                "select count(distinct owner) as n from leases where kind = 'inbox' and expires_at > now()"
            )
            return bool(rows[0]["n"] == 2)

        await until(shared)
        async with listener.listening():
            sending = asyncio.create_task(send(stays, range(200), pause=0.02))
            await dies.end(signal.SIGKILL)
            await sending
            await all_heard(listener, await all_stored_once(installation, 200))


@asynccontextmanager
async def own_engines(directory: Path, tmp_path: Path) -> AsyncIterator[tuple[Installation, Postgres, Nats]]:
    postgres = Postgres(directory / "postgres", settings=CARELESS)
    nats = Nats(directory / "nats")
    await asyncio.gather(postgres.start(), nats.start())
    try:
        admin = DatabaseUrl.parse(postgres.url)
        await bootstrap(admin, PASSWORDS, [MAPPER])
        await migrate(admin, [MAPPER])
        async with neighbours() as (served, address):
            installation = Installation(admin, nats.url, served, address, tmp_path)
            with closing(installation):
                yield installation, postgres, nats
    finally:
        await asyncio.gather(postgres.stop(), nats.stop())


@pytest.fixture
def directory() -> Iterator[Path]:
    path = quick_directory()
    yield path
    shutil.rmtree(path)


async def test_nats_may_die_and_come_back(directory: Path, tmp_path: Path) -> None:
    async with own_engines(directory, tmp_path) as (installation, _, nats), installation.mapper() as mapper:
        listener = await subscribe_when_ready(mapper, "all")
        async with listener.listening():
            sending = asyncio.create_task(send(mapper, range(200), pause=0.05))
            for _ in range(2):
                await asyncio.sleep(0.4)
                nats.kill()
                await nats.ready()
            await sending
            await all_heard(listener, await all_stored_once(installation, 200))


async def test_what_nats_has_lost_is_published_again(directory: Path, tmp_path: Path) -> None:
    async with own_engines(directory, tmp_path) as (installation, _, nats), installation.mapper() as mapper:
        await send(mapper, range(50))
        await installation.published(50)
        # As if none of it had reached the disk before the power went.
        await forget_stream(installation.nats)
        nats.kill()
        await nats.ready()
        async with mapper.as_(member_of("acme")) as ada, asyncio.timeout(30):
            heard: set[str] = set()
            request = SubscribeRequest(parent="tenants/acme")
            request.start_time.FromSeconds(0)
            async for told in ada.subscriptions.Subscribe(request):
                heard |= {event.id for event in told.events}
                if len(heard) == 50:
                    break
        assert heard == await all_stored_once(installation, 50)


async def test_postgres_may_die_and_come_back(directory: Path, tmp_path: Path) -> None:
    async with (
        own_engines(directory, tmp_path) as (installation, postgres, _),
        installation.mapper() as mapper,
    ):
        listener = await subscribe_when_ready(mapper, "all")
        async with listener.listening():
            sending = asyncio.create_task(send(mapper, range(200), pause=0.05))
            for _ in range(2):
                await asyncio.sleep(0.4)
                postgres.kill()
                await postgres.ready()
            await sending
            await all_heard(listener, await all_stored_once(installation, 200))


async def test_a_broker_that_comes_late_is_waited_for(installation: Installation, mapper: Mapper) -> None:
    installation.neighbours.refuses_for_now()
    async with mapper.as_(GATEWAY) as gateway:
        await gateway.accept([delivery(n) for n in range(5)])

    async def tried() -> bool:
        return len(installation.neighbours.requests) >= 2

    await until(tried)
    installation.neighbours.answer = installation.neighbours.became
    await all_stored_once(installation, 5)
