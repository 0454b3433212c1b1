"""What runs operations, on a clock that a test steers: a day without a provider, order, shares, leases, retention."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from foundation.clock import SteeredClock
from foundation.engines.testing import Served as Engines
from foundation.errors import Problem
from foundation.process.testing import until
from foundation.store.opening import open_store
from foundation.store.schemas import REGISTRY
from foundation.store.unit_of_work import Store
from foundation.telemetry import Metrics
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections, Served
from services.registry.connections.connection import Application, Connection
from services.registry.connections.connection import State as ConnectionState
from services.registry.host.host import Host
from services.registry.operations import queue, store
from services.registry.operations.bell import Bell
from services.registry.operations.book import OperationBook
from services.registry.operations.keeping import Keeper
from services.registry.operations.machine import Done
from services.registry.operations.measuring import OperationMetrics
from services.registry.operations.operation import Operation, Progress, Repeats, State
from services.registry.operations.queue import Shares
from services.registry.operations.runner import Bounds, Runner
from services.registry.subscriptions import store as subscriptions
from services.registry.subscriptions.subscriber import Subscriber
from services.registry.subscriptions.subscription import Subscription
from tests.services.registry.acting import effects, lines, make_acting
from tests.services.registry.conftest import Running, prepared
from tests.services.registry.plugins import hosting
from tieline.registry.v1 import connections_pb2 as pb

TENANTS = ("acme", "noisy", "quiet")
DAY = timedelta(days=1)
REPEATS = {"post": Repeats.NONE, "put": Repeats.CHECKED, "pay": Repeats.NATIVE}


def connected(tenant: str, number: int) -> Served:
    return Served(
        connection=f"tenants/{tenant}/connections/c{number}",
        plugin="acting",
        instance=f"instance-{tenant}-{number}",
        revision=1,
    )


@dataclass
class World:
    running: Running
    own: Store
    worker: Store
    clock: SteeredClock
    broker: Broker
    host: Host
    below: Path

    def runner(self, owner: str = "one", **bounds: Any) -> Runner:
        return Runner(
            self.worker,
            self.broker.executing,
            Bell(),
            self.clock,
            owner=owner,
            bounds=Bounds(**bounds),
        )

    async def add(
        self,
        key: str,
        action: str = "put",
        tenant: str = "acme",
        connection: int = 1,
        *,
        how: str = "",
        order: str = "",
        deadline: timedelta = DAY,
    ) -> Operation:
        now = self.clock.now()
        operation = Operation(
            tenant=tenant,
            id=f"{tenant}-{key}",
            connection=f"tenants/{tenant}/connections/c{connection}",
            action=action,
            arguments=f'{{"how":"{how}"}}'.encode(),
            key=key,
            author="users/bob",
            cause="",
            ordering_key=order,
            create_time=now,
            state_time=now,
            timeout=60.0,
            progress=Progress(due=now, start_deadline=now + deadline, repeats=REPEATS[action]),
        )
        async with self.own.unit_of_work(tenants=[tenant]) as work:
            assert await store.insert(work, operation, now - timedelta(days=7))
        return operation

    async def seen(self, key: str, tenant: str = "acme") -> Operation:
        async with self.own.unit_of_work(tenants=[tenant]) as work:
            found = await store.get(work, tenant, f"{tenant}-{key}")
        assert found is not None
        return found

    async def states(self) -> Counter[str]:
        rows = await self.running.sql("select tenant, state from registry.operations")
        return Counter(f"{row['tenant']} {row['state']}" for row in rows)


@pytest.fixture
async def world(engines: Engines, tmp_path: Path) -> AsyncIterator[World]:
    make_acting(tmp_path)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(prepared(engines, tmp_path))
        settings = running.settings
        own = await stack.enter_async_context(open_store(settings.database_url, REGISTRY))
        worker = await stack.enter_async_context(open_store(settings.worker_database_url, REGISTRY))
        host = await stack.enter_async_context(hosting(tmp_path / "plugins"))
        clock = SteeredClock()
        connections = [connected(tenant, number) for tenant in TENANTS for number in range(6)]
        broker = Broker(host, FixedConnections(*connections), clock=clock)
        yield World(running, own, worker, clock, broker, host, tmp_path)


async def quiet(runner: Runner) -> None:
    await until(lambda: not runner._attempts and not runner._asks, 60)


async def turn(world: World, runner: Runner, seconds: float) -> None:
    """So much time passes, and what is due is done."""
    await world.clock.advance(seconds)
    while await runner.look():
        await quiet(runner)
    await quiet(runner)


@pytest.mark.proof
async def test_a_provider_that_is_offline_for_a_day_makes_the_queue_wait(
    world: World, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    turns = prove(96, 288)
    (world.below / "offline").touch()
    for number in range(30):
        action = ("post", "put", "pay")[number % 3]
        await world.add(
            f"{number:02}", action, connection=number % 2, order=f"o{number % 2}", deadline=2 * DAY
        )
    for number in range(30, 60):
        await world.add(f"{number:02}", "put", connection=2, deadline=2 * DAY)
    await world.add("late")
    runner = world.runner()
    for _ in range(turns):
        await turn(world, runner, (DAY / turns).total_seconds())
    asked = len(lines(world.below, "asked"))
    assert not lines(world.below, "effects")
    assert await world.states() == {"acme queued": 60, "acme failed": 1}
    late = (await world.seen("late")).progress
    assert late.failure is not None
    assert late.failure.reason == "START_DEADLINE"
    assert "OFFLINE" in late.failure.message
    assert (await world.seen("31")).progress.faults == 0
    (world.below / "offline").unlink()
    back = world.clock.now()
    while (await world.states())["acme succeeded"] < 60:
        await turn(world, runner, 10)
        assert world.clock.now() - back < timedelta(minutes=15)
    drained = world.clock.now() - back
    done = [one["key"] for one in lines(world.below, "effects")]
    assert Counter(done) == Counter([f"{number:02}" for number in range(60)])
    for parity in (0, 1):
        ordered = [key for key in done if int(key) < 30 and int(key) % 2 == parity]
        assert ordered == sorted(ordered)
    assert asked < 3000, "it is looked for, and not hammered"
    found(
        f"61 operations, a day offline: {asked} calls in vain, drained within {drained} of its return, in order"
    )


async def test_what_has_an_order_keeps_it_through_retries_and_ends(world: World) -> None:
    await world.add("1", how="defect", order="x")
    await world.add("2", "pay", order="x")
    await world.add("3", how="refused", order="x")
    await world.add("4", order="x")
    await world.add("other", order="y")
    await world.add("free")
    runner = world.runner()
    await turn(world, runner, 1)
    assert {one["key"] for one in lines(world.below, "effects")} == {"other", "free"}
    assert (await world.seen("2")).progress.attempts == 0
    (world.below / "mended").touch()
    for _ in range(10):
        await turn(world, runner, 3600)
    assert [one["key"] for one in lines(world.below, "effects")][2:] == ["1", "2", "4"]
    assert (await world.seen("3")).progress.state is State.FAILED


async def test_of_those_held_back_the_one_that_failed_least_is_tried(world: World) -> None:
    bad = await world.add("0", "pay", how="defect")
    await turn(world, world.runner(), 1)
    assert (await world.seen("0")).progress.faults == 1
    await world.clock.advance(10)
    for key in ("1", "2"):
        await world.add(key, "pay")
    now = world.clock.now()
    async with world.worker.across_tenants() as work:
        assert [one.key for one in await queue.due(work, now, 16, Shares(12, 4))] == ["0", "1", "2"]
        await queue.hold(work, bad, 1, now)
        assert [one.key for one in await queue.due(work, now, 16, Shares(12, 4))] == ["1"]


async def test_an_ambiguous_one_holds_those_behind_it(world: World) -> None:
    await world.add("1", "post", how="vague", order="x")
    await world.add("2", "put", order="x", deadline=20 * DAY)
    runner = world.runner()
    for _ in range(20):
        await turn(world, runner, 3600)
    assert (await world.seen("1")).progress.needs_person
    assert (await world.seen("2")).progress.state is State.QUEUED
    assert len(lines(world.below, "questions")) == runner._machine.policy.asks
    assert effects(world.below, "1") == 1


async def test_a_noisy_tenant_and_a_noisy_connection_get_their_share(world: World) -> None:
    for number in range(100):
        await world.add(f"{number}", tenant="noisy", connection=number % 5, how="gated")
    runner = world.runner()
    while await runner.look():
        pass
    assert (await world.states())["noisy running"] == 12
    rows = await world.running.sql(
        "select connection, count(*) as n from registry.operations where state = 'running' group by connection"
    )
    assert max(row["n"] for row in rows) <= 4
    await world.add("mine-q", tenant="quiet", how="gated")
    await world.add("mine", tenant="acme", how="gated")
    await runner.look()
    states = await world.states()
    assert (states["quiet running"], states["acme running"], states["noisy running"]) == (1, 1, 12)
    for number in range(20):
        await world.add(f"more-{number}", tenant="quiet", connection=2, how="gated")
    await runner.look()
    assert (await world.states())["quiet running"] == 3, "two places were left"
    (world.below / "before").touch()
    (world.below / "after").touch()
    for _ in range(60):
        await turn(world, runner, 60)
    assert not any("queued" in state or "running" in state for state in await world.states())
    assert len(lines(world.below, "effects")) == 122


async def test_two_runners_never_have_the_same_one(world: World) -> None:
    for number in range(40):
        await world.add(f"{number}", "post", connection=number % 6)
    one, two = world.runner("one"), world.runner("two")
    while (await world.states())["acme succeeded"] < 40:
        await asyncio.gather(one.look(), two.look())
        await world.clock.advance(1)
    await quiet(one)
    await quiet(two)
    assert Counter(line["key"] for line in lines(world.below, "asked")) == Counter(map(str, range(40)))


async def test_who_was_taken_over_from_can_say_nothing_any_more(world: World) -> None:
    await world.add("1", "put", how="gated")
    slow, quick = world.runner("slow"), world.runner("quick")
    await slow.look()
    await until(lambda: lines(world.below, "asked"))
    mine = await world.seen("1")
    assert mine.progress.state is State.RUNNING
    await quick.look()
    assert (await world.seen("1")).claim == mine.claim, "its lease is not over"
    await world.clock.advance(31)
    await slow.look()
    assert (await world.seen("1")).progress.state is State.RUNNING, "it knows that it is at it"
    await quick.look()
    waits = (await world.seen("1")).progress
    assert (waits.state, waits.attempts) == (State.QUEUED, 1), "their call may still be under way"
    await world.clock.advance(25)
    await quick.look()
    assert (await world.seen("1")).progress.state is State.QUEUED
    await world.clock.advance(10)
    await quick.look()
    theirs = await world.seen("1")
    assert (theirs.progress.state, theirs.progress.attempts) == (State.RUNNING, 2)
    await slow.conclude(mine, Done(output=b'{"id": "wrong"}'))
    assert (await world.seen("1")).progress.state is State.RUNNING
    (world.below / "before").touch()
    (world.below / "after").touch()
    await quiet(slow)
    await quiet(quick)
    done = (await world.seen("1")).progress
    assert (done.state, done.output) == (State.SUCCEEDED, b'{"id":"1"}')


async def test_an_answer_that_comes_late_still_counts_if_nobody_else_began(world: World) -> None:
    await world.add("1", "post", how="gated")
    slow, quick = world.runner("slow"), world.runner("quick", asks=0)
    await slow.look()
    await until(lambda: lines(world.below, "asked"))
    await world.clock.advance(31)
    await quick.look()
    assert (await world.seen("1")).progress.state is State.AMBIGUOUS
    (world.below / "before").touch()
    (world.below / "after").touch()
    await quiet(slow)
    assert (await world.seen("1")).progress.state is State.SUCCEEDED
    assert not lines(world.below, "questions")


async def test_what_ended_long_ago_is_removed_and_its_key_before_that(world: World) -> None:
    await world.add("old")
    await world.add("open", "post", how="vague", connection=2)
    runner = world.runner()
    await turn(world, runner, 1)
    metrics = Metrics("registry")
    measured = OperationMetrics(metrics.registry)
    keeper = Keeper(world.worker, world.clock, timedelta(days=30), measured)
    await keeper.look()
    assert await world.running.sql("select from registry.operations where not key_held") == []
    await world.clock.advance(8 * 86400)
    await keeper.look()
    held = await world.running.sql("select id, key_held from registry.operations order by id")
    assert [(row["id"], row["key_held"]) for row in held] == [("acme-old", False), ("acme-open", True)]
    assert b'tieline_operations{state="ambiguous"} 1.0' in metrics.render()
    await world.clock.advance(30 * 86400)
    await keeper.look()
    left = await world.running.sql("select id from registry.operations")
    assert [row["id"] for row in left] == ["acme-open"], "what is open stays"


async def test_the_end_of_a_connection_takes_back_what_waits(world: World) -> None:
    (world.below / "offline").touch()
    await world.add("waits")
    await world.add("other", connection=2)
    await world.add("vague", "post", how="vague")
    runner = world.runner()
    await turn(world, runner, 1)
    recorder: Any = None  # nobody asks for this one
    book = OperationBook(
        own=world.own, manifests=world.host, recorder=recorder, bell=Bell(), clock=world.clock
    )
    await book.remove(ending("acme", "c1"))
    await book.remove(ending("acme", "c1"))
    assert (await world.seen("waits")).progress.state is State.CANCELLED
    assert (await world.seen("other")).progress.state is State.QUEUED
    assert (await world.seen("vague")).progress.cancel_wanted or (
        await world.seen("vague")
    ).progress.state is State.CANCELLED


def ending(tenant: str, id_: str) -> Connection:
    now = SteeredClock().now()
    return Connection(
        tenant=tenant,
        id=id_,
        instance="i",
        wanted=pb.Connection(),
        settings_version="1.0.0",
        revision=1,
        applied_revision=1,
        state=ConnectionState.DELETING,
        state_time=now,
        application=Application.APPLIED,
        application_failure=None,
        resolved_version="1.0.0",
        endpoints={},
        create_time=now,
        update_time=now,
    )


async def test_the_end_of_a_connection_waits_for_its_subscriptions_but_not_for_ever(world: World) -> None:
    picture: Any = None  # only the end of one is looked at
    operations: Any = None
    subscriber = Subscriber(
        worker=world.worker,
        manifests=world.host,
        operations=operations,
        bell=Bell(),
        picture=picture,
        public_url="https://hooks.acme.example",
        clock=world.clock,
    )
    gone = ending("acme", "c1")
    await subscriber.remove(gone)
    for webhook in ("one", "two"):
        row = Subscription(
            tenant="acme", connection="c1", webhook=webhook, instance="i", url="u", due=world.clock.now()
        )
        async with world.worker.across_tenants() as work:
            await subscriptions.insert(work, row)
    with pytest.raises(Problem, match="one, two"):
        await subscriber.remove(gone)
    await world.clock.advance(3601)
    await subscriber.remove(gone)
    assert await world.running.sql("select from registry.subscriptions") == []
