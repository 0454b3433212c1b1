"""Operations while things die: the registry, the plugin, the answer. Each step has its kill; effects are counted in a file."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import psutil
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
    of_key,
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
async def world(
    engines: Served, tmp_path: Path, *, asked: bool = True, given: str = "10s"
) -> AsyncIterator[Running]:
    make_acting(tmp_path, asked=asked, timeout=given)
    async with prepared(engines, tmp_path) as running:
        running.settings = acting_settings(running.settings)
        yield running


async def settled(running: Running, operation: Operation, *states: str) -> Operation:
    async with running.as_(OPERATOR) as channel:

        async def there() -> bool:
            return state(await found(channel, operation)) in (states or CALM)

        await until(there, 90)
        return await found(channel, operation)


async def waited_out(running: Running) -> None:
    """Time passes: the dead one's leases are over, and so is what its last calls were given."""
    await running.sql(
        "update registry.operations set lease_time = least(lease_time, now()),"
        " attempt_until = least(attempt_until, now())"
    )


@dataclass(frozen=True)
class Story:
    """An action, how far its attempt was at the kill, and how often it is called in all."""

    key: str
    action: str
    done: bool
    calls: int


STORIES = (
    Story("called", "post", done=False, calls=2),  # the provider says that it never arrived
    Story("unanswered", "post", done=True, calls=1),  # the provider says that it is done
    Story("looked for", "put", done=False, calls=2),
    Story("known", "pay", done=True, calls=2),
)


async def test_a_registry_killed_in_the_middle_of_its_attempts(engines: Served, tmp_path: Path) -> None:
    async with world(engines, tmp_path) as running:
        with living(running.settings, tmp_path / "first") as first:
            await ready(running)
            await connect_acting(running)
            for one in STORIES:
                if one.done:
                    (tmp_path / f"before {one.key}").touch()
            async with running.as_(OPERATOR) as channel:
                made = [await submit(channel, one.action, one.key, how="gated") for one in STORIES]
            for one in STORIES:
                await until(partial(of_key, tmp_path, "effects" if one.done else "asked", one.key))
            await kill(first)
        assert [effects(tmp_path, one.key) for one in STORIES] == [int(one.done) for one in STORIES]
        await waited_out(running)
        (tmp_path / "before").touch()
        (tmp_path / "after").touch()
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            for one, operation in zip(STORIES, made, strict=True):
                assert state(await settled(running, operation)) == "SUCCEEDED", one
    for one in STORIES:
        assert effects(tmp_path, one.key) == 1, one
        assert of_key(tmp_path, "asked", one.key) == one.calls, one
        assert bool(of_key(tmp_path, "questions", one.key)) == (one.action == "post"), one


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
        await waited_out(running)
        with living(running.settings, tmp_path / "second"):
            await ready(running)
            assert state(await settled(running, made)) == "SUCCEEDED"
    assert effects(tmp_path, "key") == 1
    assert len(lines(tmp_path, "asked")) == 1


async def test_where_nobody_can_be_asked_a_lost_attempt_stays_ambiguous(
    engines: Served, tmp_path: Path
) -> None:
    """Here the lease and the dead one's call are waited for, by the clock."""
    async with world(engines, tmp_path, asked=False, given="2s") as running:
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


async def test_a_plugin_killed_in_the_middle_of_an_attempt(engines: Served, tmp_path: Path) -> None:
    """Each in a plugin of its own, so that none waits for another one's restart."""
    stories = [(action, how) for action in ("post", "put", "pay") for how in ("die before", "die after")]
    names = [f"{action}-{how.replace(' ', '-')}" for action, how in stories]
    for name in names:
        make_acting(tmp_path, timeout="10s", plugin=name)
    async with prepared(engines, tmp_path) as running:
        running.settings = acting_settings(running.settings)
        with living(running.settings, tmp_path / "first"):
            await ready(running)
            made = list[Operation]()
            for name, (action, how) in zip(names, stories, strict=True):
                connection = await connect_acting(running, name, plugin=name)
                async with running.as_(OPERATOR) as channel:
                    made.append(await submit(channel, action, name, connection=connection, how=how))
            for name, operation in zip(names, made, strict=True):
                assert state(await settled(running, operation)) == "SUCCEEDED", name
    for name in names:
        assert effects(tmp_path, name) == 1, name
        assert of_key(tmp_path, "asked", name) == (1 if name == "post-die-after" else 2), name


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
        (row,) = await running.sql("select lease_time <= now() as over from registry.operations")
        assert row["over"], "it gave it back"
        await waited_out(running)
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
