"""Upgrades: the new version beside the old, tried first, watched afterwards, and taken back by itself."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from foundation.clock import SystemClock
from foundation.errors import Code, Problem
from foundation.process.supervised import State
from foundation.process.testing import gone, until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import Served
from services.registry.catalogue.versions import Range, Version
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from services.registry.host.rollouts import OVER, Rollout, Rollouts, Stage
from tests.services.registry.plugins import CODE, group, hosting, make_plugin, served, titles
from tieline.common.v1.failure_pb2 import Failure

ONE, TWO = Version(1, 0, 0), Version(2, 0, 0)
NEW = CODE.replace("title=word +", "title='new ' + word +")
MOMENT = timedelta(seconds=0.2)
LONG = timedelta(hours=1)


@dataclass
class Playing:
    """A host, its upgrades, and the instances that they are tried with."""

    host: Host
    instances: list[Served] = field(default_factory=lambda: [served("it", number) for number in (1, 2, 3)])

    def __post_init__(self) -> None:
        self.broker = Broker(self.host, self)
        self.rollouts = Rollouts(self.host, self, SystemClock())

    async def find(self, connection: str) -> Served | None:
        return next((one for one in self.instances if one.connection == connection), None)

    def of_plugin(self, _plugin: str, version: Version) -> list[Served]:
        return [one for one in self.instances if Range.parse(one.version_range).admits(version)]

    async def prepare(self, process: PluginProcess, instance: Served) -> Failure | None:
        return await self.broker.prepare(process, instance)

    async def say(self, one: Served | None = None, word: str = "x") -> list[str]:
        (result,) = await self.broker.transform([group(one or self.instances[0], word)])
        assert not result.HasField("failure"), result.failure
        return list(titles(result))

    async def over(self, rollout: Rollout) -> Rollout:
        await until(lambda: rollout.stage in OVER, 60)
        return rollout


@asynccontextmanager
async def playing(tmp_path: Path, **new: str) -> AsyncIterator[Playing]:
    make_plugin(tmp_path, "it")
    async with hosting(tmp_path) as host:
        await until(lambda: host.serving("it") == ONE, 30)
        make_plugin(tmp_path, "it", version="2.0.0", folder="it-2", **({"code": NEW} | new))
        await until(lambda: len(host.catalogue.content.versions("it")) == 2, 30)
        played = Playing(host)
        async with played.rollouts:
            yield played


async def test_a_new_version_serves_when_somebody_says_so_and_the_old_one_ends(tmp_path: Path) -> None:
    async with playing(tmp_path) as it:
        assert await it.say() == ["x"], "its mere presence changes nothing"
        old = it.host.processes["it"].pid
        assert old is not None
        rollout = it.rollouts.start("it", TWO, MOMENT)
        assert it.rollouts.start("it", TWO, MOMENT) is rollout, "the same again is the same"
        await it.over(rollout)
        assert (rollout.stage, rollout.done, rollout.total, rollout.failure) == (Stage.DONE, 3, 3, None)
        assert await it.say() == ["new x"]
        await gone([old], 30)
        await until(lambda: [str(one.manifest.version) for one in it.host.everything()] == ["2.0.0"], 30)


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_no_call_fails_while_the_version_changes(
    tmp_path: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """There and back again under load, as often as is asked for."""
    changes = prove(1, 10)
    async with playing(tmp_path) as it:
        said: list[str] = []

        async def call(one: Served) -> None:
            while True:
                said.extend(await it.say(one))

        async with asyncio.TaskGroup() as tasks:
            calling = [tasks.create_task(call(one)) for one in it.instances]
            await until(lambda: said, 30)
            for number in range(changes):
                target = ONE if number % 2 else TWO
                rollout = await it.over(it.rollouts.start("it", target, MOMENT))
                assert rollout.stage is Stage.DONE, rollout.failure
                await until(partial(_more_than, said, len(said) + 20), 30)
                assert set(said[-3:]) == {"x" if number % 2 else "new x"}
            for task in calling:
                task.cancel()
        assert {"x", "new x"} == set(said)
    found(f"{changes} changes of version under load: {len(said)} calls, none failed")


def _more_than(said: list[str], count: int) -> bool:
    return len(said) > count


async def test_who_pins_a_version_stays_on_it(tmp_path: Path) -> None:
    async with playing(tmp_path) as it:
        it.instances[1] = pinned = served("it", 2, version_range="<2")
        await it.over(it.rollouts.start("it", TWO, MOMENT))
        assert await it.say() == ["new x"]
        assert await it.say(pinned) == ["x"]
        it.instances[2] = eager = served("it", 3, version_range=">=2")
        assert await it.say(eager) == ["new x"]


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ({"before": "sys.exit('not today')"}, "not today"),
        ({"code": NEW.replace('== "forbidden"', '!= "forbidden"')}, "that word is forbidden"),
    ],
)
async def test_what_fails_before_the_shift_touches_nobody(
    tmp_path: Path, new: dict[str, str], why: str
) -> None:
    async with playing(tmp_path, **new) as it:
        await it.say()
        old = it.host.processes["it"].pid
        rollout = await it.over(it.rollouts.start("it", TWO, LONG))
        assert rollout.stage is Stage.ROLLED_BACK
        assert rollout.failure is not None
        assert why in rollout.failure.message
        assert await it.say() == ["x"]
        assert it.host.processes["it"].pid == old
        await until(lambda: all(one.manifest.version == "1.0.0" for one in it.host.everything()), 30)


async def test_a_new_version_that_crashes_at_its_calls_is_taken_back_by_itself(tmp_path: Path) -> None:
    """It starts, takes every instance, and dies at whatever it is asked."""
    async with playing(tmp_path, code=NEW.replace("match word:", "os.abort()\n        match word:")) as it:
        await it.say()
        rollout = it.rollouts.start("it", TWO, LONG)
        await until(lambda: rollout.stage is Stage.OBSERVING, 60)

        async def taken_back() -> bool:
            await it.broker.transform([group(one, f"{number}") for number, one in enumerate(it.instances)])
            return rollout.stage is Stage.ROLLED_BACK

        await until(taken_back, 90)
        assert rollout.failure is not None
        assert "SIGABRT" in rollout.failure.message

        async def serves() -> bool:
            (result,) = await it.broker.transform([group(it.instances[0], "y")])
            return list(titles(result)) == ["y"]

        await until(serves, 60)
        assert it.host.serving("it") == ONE


async def test_somebody_may_take_it_back(tmp_path: Path) -> None:
    async with playing(tmp_path) as it:
        rollout = it.rollouts.start("it", TWO, LONG)
        await until(lambda: rollout.stage is Stage.OBSERVING, 60)
        assert await it.say() == ["new x"]
        assert (await it.rollouts.cancel(rollout.name)).stage is Stage.ROLLED_BACK
        assert await it.say() == ["x"]
        with pytest.raises(Problem) as refused:
            await it.rollouts.cancel(rollout.name)
        assert refused.value.code is Code.STATE_REFUSES


async def test_one_whose_folder_vanishes_while_it_is_observed_is_taken_back(tmp_path: Path) -> None:
    async with playing(tmp_path) as it:
        old = it.host.processes["it"]
        rollout = it.rollouts.start("it", TWO, LONG)
        await until(lambda: rollout.stage is Stage.OBSERVING, 60)
        shutil.rmtree(tmp_path / "it-2")
        await it.over(rollout)
        assert (rollout.stage, rollout.failure and rollout.failure.reason) == (Stage.ROLLED_BACK, "GONE")
        assert it.host.processes["it"] is old
        assert await it.say() == ["x"]


async def test_the_old_version_stays_while_the_new_one_is_observed_however_idle_it_was(
    tmp_path: Path,
) -> None:
    async with playing(tmp_path) as it:
        await it.say()
        old = it.host.processes["it"]
        pid = old.pid
        rollout = it.rollouts.start("it", TWO, LONG)
        await until(lambda: rollout.stage is Stage.OBSERVING, 60)
        old.idle_since -= 3600.0
        make_plugin(tmp_path, "more")
        await until(lambda: "more" in it.host.processes, 30)
        assert old in it.host.everything()
        await it.rollouts.cancel(rollout.name)
        assert it.host.processes["it"] is old
        assert (await it.say(), old.pid) == (["x"], pid)
        assert not it.host.held


async def test_what_cannot_be_upgraded_is_refused(tmp_path: Path) -> None:
    async with playing(tmp_path) as it:
        refusals: list[tuple[Callable[[], object], Code]] = [
            (partial(it.rollouts.start, "none", TWO, MOMENT), Code.NOT_FOUND),
            (partial(it.rollouts.start, "it", Version(3, 0, 0), MOMENT), Code.NOT_FOUND),
            (partial(it.rollouts.start, "it", ONE, MOMENT), Code.STATE_REFUSES),
            (partial(it.rollouts.get, "plugins/it/rollouts/none"), Code.NOT_FOUND),
        ]
        for refused, code in refusals:
            with pytest.raises(Problem) as problem:
                refused()
            assert problem.value.code is code
        it.rollouts.start("it", TWO, LONG)
        with pytest.raises(Problem, match="under way"):
            it.rollouts.start("it", ONE, LONG)


async def test_the_version_that_serves_is_remembered_and_a_newer_one_does_not_take_over(
    tmp_path: Path,
) -> None:
    async with playing(tmp_path) as it:
        assert (await it.host._ledger.tracks())["it"].version == ONE
        await it.over(it.rollouts.start("it", TWO, MOMENT))
        assert (await it.host._ledger.tracks())["it"].version == TWO
        make_plugin(tmp_path, "it", version="3.0.0", folder="it-3")
        await until(lambda: len(it.host.catalogue.content.versions("it")) == 3, 30)
        assert await it.say() == ["new x"]
        assert it.host.processes["it"].state is State.READY
