"""Operations while things die: the registry, the plugin, the answer. Each step has its kill; effects are counted in a file."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from msgspec.structs import replace

from foundation.engines.testing import Served
from foundation.process.ports import Port
from foundation.process.testing import gone, until
from foundation.settings import Address
from services.registry.settings import RegistrySettings
from tests.services.registry.acting import (
    acting_settings,
    connect_acting,
    effects,
    every,
    found,
    lines,
    make_acting,
    state,
    submit,
)
from tests.services.registry.conftest import OPERATOR, Running, prepared, ready
from tests.services.registry.test_killed import start
from tieline.registry.v1.operations_pb2 import Operation

CALM = {"SUCCEEDED", "FAILED", "CANCELLED", "DEAD_LETTERED"}


@contextmanager
def living(settings: RegistrySettings, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    where.mkdir(exist_ok=True)
    process = start(settings, where)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def kill(process: subprocess.Popen[bytes]) -> None:
    plugins = [child.pid for child in psutil.Process(process.pid).children()]
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(process.wait, 30)
    await gone(plugins)


@asynccontextmanager
async def world(engines: Served, tmp_path: Path, *, asked: bool = True) -> AsyncIterator[Running]:
    make_acting(tmp_path, asked=asked, timeout="10s")
    async with prepared(engines, tmp_path) as running:
        running.settings = acting_settings(running.settings)
        yield running


async def settled(running: Running, operation: Operation, *states: str) -> Operation:
    async with running.as_(OPERATOR) as channel:

        async def there() -> bool:
            return state(await found(channel, operation)) in (states or CALM)

        await until(there, 90)
        return await found(channel, operation)


@pytest.mark.parametrize(
    ("action", "gate", "calls"),
    [
        ("post", None, 2),  # called, nothing done yet: the provider says that it never arrived
        ("post", "before", 1),  # done, and not answered: the provider says that it is done
        ("put", None, 2),
        ("pay", "before", 2),
    ],
)
async def test_a_registry_killed_in_the_middle_of_an_attempt(
    engines: Served, tmp_path: Path, action: str, gate: str | None, calls: int
) -> None:
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, action, "key", how="gated")
            if gate:
                (tmp_path / gate).touch()
                await until(lambda: effects(tmp_path, "key"))
            else:
                await until(lambda: lines(tmp_path, "asked"))
            await kill(first)
        assert effects(tmp_path, "key") == (1 if gate else 0)
        (tmp_path / "before").touch()
        (tmp_path / "after").touch()
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            done = await settled(running, made)
        assert state(done) == "SUCCEEDED"
        assert effects(tmp_path, "key") == 1
        assert len(lines(tmp_path, "asked")) == calls
        assert bool(lines(tmp_path, "questions")) == (action == "post")


async def test_a_registry_killed_while_it_is_queued_and_while_it_goes_on_at_the_provider(
    engines: Served, tmp_path: Path
) -> None:
    (tmp_path / "offline").touch()
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, "post", "key", how="long")
            await kill(first)
        (tmp_path / "offline").unlink()
        with living(running.settings, tmp_path / "second") as second:
            await ready(running)
            pending = await settled(running, made, "PENDING", "AMBIGUOUS")
            assert state(pending) == "PENDING"
            await kill(second)
        (tmp_path / "finished").touch()
        with living(running.settings, tmp_path / "third"):
            await ready(running)
            assert state(await settled(running, made)) == "SUCCEEDED"
    assert effects(tmp_path, "key") == 1
    assert {one["pending"] for one in lines(tmp_path, "questions")} == {"job-7"}


async def test_a_registry_killed_with_the_answer_in_its_hand(engines: Served, tmp_path: Path) -> None:
    """It is done, and it was said; what was said could not be stored."""
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, "post", "key", how="gated")
            await until(lambda: lines(tmp_path, "asked"))
            holding = await asyncpg.connect(running.admin.reveal())
            try:
                async with holding.transaction():
                    await holding.execute("select from registry.operations for update")
                    (tmp_path / "before").touch()
                    (tmp_path / "after").touch()

                    async def wants_to_say_so() -> bool:
                        asking = (
                            "select from pg_stat_activity where wait_event_type = 'Lock' and query like $1"
                        )
                        return bool(await running.sql(asking, "%for update%"))

                    await until(wants_to_say_so, 60)
                    await kill(first)
            finally:
                await holding.close()
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            assert state(await settled(running, made)) == "SUCCEEDED"
    assert effects(tmp_path, "key") == 1
    assert len(lines(tmp_path, "asked")) == 1


async def test_where_nobody_can_be_asked_a_lost_attempt_stays_ambiguous(
    engines: Served, tmp_path: Path
) -> None:
    async with world(engines, tmp_path, asked=False) as running:
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, "post", "key", how="gated")
            await until(lambda: lines(tmp_path, "asked"))
            await kill(first)
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            ambiguous = await settled(running, made, "AMBIGUOUS")

            async def waits_for_a_person() -> bool:
                async with running.as_(OPERATOR) as channel:
                    return not (await found(channel, ambiguous)).HasField("next_attempt_time")

            await until(waits_for_a_person, 60)
    assert len(lines(tmp_path, "asked")) == 1, "nobody repeats what may have happened"


@pytest.mark.parametrize("how", ["die before", "die after"])
@pytest.mark.parametrize("action", ["post", "put", "pay"])
async def test_a_plugin_killed_in_the_middle_of_an_attempt(
    engines: Served, tmp_path: Path, action: str, how: str
) -> None:
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, action, "key", how=how)
            done = await settled(running, made)
    assert state(done) == "SUCCEEDED"
    assert effects(tmp_path, "key") == 1
    asked = len(lines(tmp_path, "asked"))
    assert asked == (1 if action == "post" and how == "die after" else 2)


async def test_an_answer_that_is_cut_off_is_looked_for(engines: Served, tmp_path: Path) -> None:
    make_acting(tmp_path, timeout="2s")
    async with prepared(engines, tmp_path) as running:
        running.settings = acting_settings(running.settings)
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, "post", "key", how="cut off")
            done = await settled(running, made)
    assert (state(done), effects(tmp_path, "key")) == ("SUCCEEDED", 1)
    assert len(lines(tmp_path, "asked")) == 1


async def test_a_registry_that_ends_leaves_what_it_was_at_to_whoever_comes(
    engines: Served, tmp_path: Path
) -> None:
    async with world(engines, tmp_path) as running:
        patient = replace(running.settings, operation_lease_seconds=600.0)
        with living(patient, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            async with running.as_(OPERATOR) as channel:
                made = await submit(channel, "put", "key", how="gated")
            await until(lambda: lines(tmp_path, "asked"))
            first.terminate()
            await asyncio.to_thread(first.wait, 60)
            assert first.returncode == 0
        (tmp_path / "before").touch()
        (tmp_path / "after").touch()
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            assert state(await settled(running, made)) == "SUCCEEDED"
    assert effects(tmp_path, "key") == 1


async def test_two_replicas_run_nothing_twice_and_one_of_them_may_die(
    engines: Served, tmp_path: Path, found: Callable[[str], None]
) -> None:
    total = 60
    async with AsyncExitStack() as stack, world(engines, tmp_path) as running:
        ports = [stack.enter_context(Port()) for _ in range(2)]
        listen, http = (Address.parse(port.address) for port in ports)
        other = replace(running.settings, listen=listen, http=http)
        first = stack.enter_context(living(running.settings, tmp_path / "first"))
        second = stack.enter_context(living(other, tmp_path / "second"))
        beside = replace_running(running, other)
        await ready(running)
        await ready(beside)
        await connect_acting(running)
        await connect_acting(running, "more")
        async with running.as_(OPERATOR) as channel, beside.as_(OPERATOR) as channel_beside:
            channels = [channel, channel_beside]
            for number in range(total):
                action = ("post", "put", "pay")[number % 3]
                name = f"tenants/acme/connections/{'main' if number % 2 else 'more'}"
                for one in channels:
                    await submit(one, action, f"k{number}", connection=name)
                if number == total // 2:
                    await kill(second)
                    channels.pop()
            assert first.poll() is None

            async def over() -> bool:
                return all(state(one) in CALM for one in await every(channel))

            await until(over, 120)
            states = [state(one) for one in await every(channel)]
    counts = [effects(tmp_path, f"k{number}") for number in range(total)]
    assert states == ["SUCCEEDED"] * total
    assert counts == [1] * total
    found(f"{total} operations, submitted twice, two replicas, one killed: {sum(counts)} effects")


def replace_running(running: Running, settings: RegistrySettings) -> Running:
    return dataclasses.replace(running, settings=settings)
