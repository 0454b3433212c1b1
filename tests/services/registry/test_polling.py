"""From a stream into the inbox: whoever dies in between, nothing is lost, and nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.engines.testing import Served, fresh_database
from foundation.identity import Kind, Principal, Role, TokenVerifier
from foundation.process.testing import until
from foundation.rpc import RpcServer, connect
from foundation.settings import Address
from foundation.store.schemas import MAPPER, REGISTRY
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from foundation.telemetry import Metrics
from services.mapper.inbox import Inbox
from services.mapper.inbox_servicer import InboxServicer
from services.mapper.store.inbox import InboxStore, PressureStore
from services.registry.broker.broker import Broker
from services.registry.polling.checkpoints import Checkpoints, Claim, Place, TakenOver
from services.registry.polling.inbox import MapperInbox
from services.registry.polling.poller import Ended, Errand, Polled, Poller
from tests.services.registry.asked import asking, connected
from tests.services.registry.conftest import PASSWORDS, TEMPLATE, OneKey, token_for
from tests.services.registry.raw import calls
from tieline.common.v1.delivery_pb2 import PRIORITY_BULK
from tieline.mapper.v1.inbox_pb2_grpc import add_InboxServiceServicer_to_server
from tieline.plugin.v1.fetch_pb2 import Checkpoint

OURSELVES = Principal(Kind.SERVICE, "services/registry", frozenset({Role.SERVICE}))
RECORDS = 1000
ENDS = 8


class Injured(Exception):  # noqa: N818 - it is
    """The relay ends here."""


class Noted(Checkpoints):
    """Remembers what was stored, and ends where it is told to: after the inbox, before the checkpoint."""

    def __init__(self, worker: Store, owner: str) -> None:
        super().__init__(worker, SystemClock(), owner)
        self.stored: list[int] = []
        self.ends: Callable[[], bool] = lambda: False
        self.waits: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    async def store(self, claim: Claim, checkpoint: Checkpoint, newest: datetime | None = None) -> None:
        if self.ends():
            raise Injured
        if self.waits is not None:
            self.arrived.set()
            await self.waits.wait()
        await super().store(claim, checkpoint, newest)
        self.stored.append(int(checkpoint.cursor or 0))


@dataclass
class Desk:
    service: Store
    worker: Store
    inbox: MapperInbox
    kept: Store
    servicer: InboxServicer
    pollers: dict[str, Noted] = field(default_factory=dict)

    def poller(self, broker: Broker, owner: str = "one") -> tuple[Poller, Noted]:
        noted = self.pollers.setdefault(owner, Noted(self.worker, owner))
        return Poller(broker.fetching, self.inbox, noted), noted

    async def keys(self) -> Counter[str]:
        """What stands in the inbox, by the bytes that the plugin sent."""
        async with self.kept.across_tenants() as work:
            rows = await work.exec_driver_sql("select body from deliveries")
            return Counter(bytes(row.body).decode(errors="replace") for row in rows)

    async def checkpoint(self) -> tuple[int, int]:
        async with self.worker.across_tenants() as work:
            row = (await work.exec_driver_sql("select cursor, epoch from checkpoints")).one()
            return int(row.cursor or 0), row.epoch


@pytest.fixture
async def desk(engines: Served) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(engines.postgres, TEMPLATE))
        admin = DatabaseUrl.parse(database)
        service, worker = (
            Store(admin.login(role, PASSWORDS[role]), REGISTRY, application="tests")
            for role in (REGISTRY.service, REGISTRY.worker)
        )
        inbox, kept = (
            Store(admin.login(role, PASSWORDS[role]), MAPPER, application="tests")
            for role in (MAPPER.service, MAPPER.worker)
        )
        for one in (service, worker, inbox, kept):
            stack.push_async_callback(one.aclose)
        server = RpcServer(
            Address("127.0.0.1", 0),
            authenticator=TokenVerifier(OneKey(), SystemClock()),
            metrics=Metrics("inbox"),
            tracer=trace.NoOpTracer(),
            ids=RandomIds(),
            drain=0.1,
        )
        servicer = InboxServicer(
            Inbox(InboxStore(inbox)), PressureStore(kept), asyncio.Event(), SystemClock()
        )
        server.add(add_InboxServiceServicer_to_server, servicer)

        async def token() -> str:
            return token_for(OURSELVES)

        await stack.enter_async_context(server)
        channel = await stack.enter_async_context(connect(str(server.address), token))
        yield Desk(service, worker, MapperInbox(channel, SystemClock()), kept, servicer)


def errand(number: int = 1, **more: object) -> Errand:
    fields = {"connection": f"tenants/acme/connections/asked-{number}", "stream": "items"} | more
    return Errand(**fields)  # type: ignore[arg-type]


def everything() -> Counter[str]:
    return Counter(f'{{"n": {number}}}' for number in range(RECORDS))


async def test_a_stream_is_carried_into_the_inbox_and_its_end_is_where_it_goes_on(
    tmp_path: Path, desk: Desk
) -> None:
    async with asking(tmp_path, connected(1)) as (broker, _):
        poller, noted = desk.poller(broker)
        polled = await poller.poll(errand())
        assert (polled.ended, polled.records, polled.failure) == (Ended.CAUGHT_UP, RECORDS, None)
        assert (await poller.poll(errand())).records == 0
    assert noted.stored == sorted(set(noted.stored))
    assert await desk.keys() == everything()
    assert await desk.checkpoint() == (RECORDS, 2)


async def _until_stored(noted: Noted, count: int, task: asyncio.Task[Polled]) -> None:
    await until(lambda: task.done() or len(noted.stored) >= count)


async def test_a_plugin_that_is_killed_at_random_frames_loses_nothing(tmp_path: Path, desk: Desk) -> None:
    dice = random.Random(7)  # noqa: S311  not a secret
    async with asking(tmp_path, connected(1, "slow")) as (broker, host):
        poller, noted = desk.poller(broker)
        kills = 0
        while True:
            task = asyncio.create_task(poller.poll(errand()))
            reached = len(noted.stored) + dice.randrange(1, 12)
            if kills < 5:
                await _until_stored(noted, reached, task)
                pid = host.processes["asked"].pid
                if pid is not None and not task.done():
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            polled = await task
            if polled.ended is Ended.CAUGHT_UP:
                break
            assert polled.ended is Ended.FAILED
            await SystemClock().sleep(polled.again_after or 0)  # as its schedule would
        assert kills == 5
    assert noted.stored == sorted(set(noted.stored)), "it never went back"
    assert await desk.keys() == everything()


@pytest.mark.parametrize("how", ["injured", "cancelled"])
async def test_a_relay_that_ends_between_inbox_and_checkpoint_repeats_and_loses_nothing(
    tmp_path: Path, desk: Desk, how: str
) -> None:
    dice = random.Random(11)  # noqa: S311
    async with asking(tmp_path, connected(1)) as (broker, _):
        poller, noted = desk.poller(broker)
        task: asyncio.Task[Polled] | None = None
        ends = 0

        def over() -> bool:
            nonlocal ends
            if ends >= ENDS or dice.random() > 0.2:
                return False
            ends += 1
            if how == "cancelled" and task is not None:
                task.cancel()
            return how == "injured"

        noted.ends = over
        while task is None or task.cancelled() or isinstance(task.exception(), Injured):
            task = asyncio.create_task(poller.poll(errand()))
            await asyncio.wait([task])
        assert task.result().ended is Ended.CAUGHT_UP
        assert ends == ENDS
    assert noted.stored == sorted(set(noted.stored))
    assert await desk.keys() == everything()
    starts = [call["at"] for call in calls(tmp_path, "FetchData")]
    assert starts == sorted(starts)


async def test_of_two_pollers_only_the_later_moves_the_checkpoint_and_the_other_stops(
    tmp_path: Path, desk: Desk
) -> None:
    async with asking(tmp_path, connected(1)) as (broker, _):
        first, slow = desk.poller(broker, "first")
        second, quick = desk.poller(broker, "second")
        slow.waits = asyncio.Event()
        stuck = asyncio.create_task(first.poll(errand()))
        async with asyncio.timeout(30):
            await slow.arrived.wait()
        assert (await second.poll(errand())).ended is Ended.CAUGHT_UP
        slow.waits.set()
        assert (await stuck).ended is Ended.TAKEN_OVER
        assert not slow.stored
        assert quick.stored[-1] == RECORDS
    assert await desk.checkpoint() == (RECORDS, 2)
    assert await desk.keys() == everything()


async def test_many_pollers_at_once_leave_the_whole_stream_once(tmp_path: Path, desk: Desk) -> None:
    async with asking(tmp_path, connected(1, "slow")) as (broker, _):
        pollers = [desk.poller(broker, str(number))[0] for number in range(4)]
        ended = [one.ended for one in await asyncio.gather(*(one.poll(errand()) for one in pollers))]
        assert Counter(ended) == {Ended.CAUGHT_UP: 1, Ended.TAKEN_OVER: 3}
    assert await desk.keys() == everything()
    assert (await desk.checkpoint())[0] == RECORDS


async def test_an_old_claim_moves_nothing(desk: Desk) -> None:
    place = Place("tenants/acme/connections/asked-1", "items", "p")
    one = Checkpoints(desk.worker, SystemClock(), "one")
    old, new = await one.claim(place), await one.claim(place)
    assert new.epoch > old.epoch
    await one.store(new, Checkpoint(cursor=b"20", cursor_version=3))
    with pytest.raises(TakenOver):
        await one.store(old, Checkpoint(cursor=b"10"))
    with pytest.raises(TakenOver):
        await one.forget(old)
    assert (await one.claim(place)).checkpoint == Checkpoint(cursor=b"20", cursor_version=3)


async def test_a_checkpoint_that_the_provider_has_forgotten_is_begun_anew_or_left(
    tmp_path: Path, desk: Desk
) -> None:
    async with asking(tmp_path, connected(1, "lost")) as (broker, _):
        poller, _noted = desk.poller(broker)
        assert (await poller.poll(errand())).ended is Ended.CAUGHT_UP
        left = await poller.poll(errand(starts_over=False))
        assert (left.ended, left.again_after) == (Ended.CURSOR_INVALID, None)
        assert (await desk.checkpoint())[0] == RECORDS
        begun = await poller.poll(errand())
        assert (begun.ended, begun.again_after) == (Ended.CURSOR_INVALID, 0.0)
        assert (await desk.checkpoint())[0] == 0
        assert (await poller.poll(errand())).ended is Ended.CAUGHT_UP
    assert await desk.keys() == everything()


async def test_a_limit_says_come_again_and_what_is_broken_is_kept_as_such(tmp_path: Path, desk: Desk) -> None:
    limited, broken = connected(1, "limited"), connected(2, "partly broken")
    async with asking(tmp_path, limited, broken) as (broker, _):
        poller, _noted = desk.poller(broker)
        assert (await poller.poll(errand(1))).ended is Ended.LIMIT
        polled = await poller.poll(errand(2))
        assert (polled.ended, polled.records, polled.broken) == (Ended.CAUGHT_UP, 900, 100)
    async with desk.kept.across_tenants() as work:
        assert (await work.exec_driver_sql("select count(*) from dead_letters")).scalar_one() == 100


async def test_history_waits_while_the_inbox_is_full_and_what_is_live_does_not(
    tmp_path: Path, desk: Desk
) -> None:
    desk.servicer.hold_bulk = -1
    async with asking(tmp_path, connected(1)) as (broker, _):
        poller, _noted = desk.poller(broker)
        held = await poller.poll(errand(priority=PRIORITY_BULK))
        assert held.ended is Ended.HELD
        assert held.again_after
        assert not calls(tmp_path, "FetchData")
        assert (await poller.poll(errand())).ended is Ended.CAUGHT_UP


async def test_an_inbox_that_is_away_ends_the_poll_and_moves_nothing(tmp_path: Path, desk: Desk) -> None:
    async with asking(tmp_path, connected(1)) as (broker, _), connect("127.0.0.1:1") as nobody:
        noted = Noted(desk.worker, "one")
        poller = Poller(broker.fetching, MapperInbox(nobody, SystemClock()), noted)
        polled = await poller.poll(errand())
        assert polled.ended is Ended.FAILED
        assert polled.failure is not None
        assert polled.failure.reason == "INBOX_UNAVAILABLE"
    assert await desk.checkpoint() == (0, 1)
    assert not await desk.keys()
