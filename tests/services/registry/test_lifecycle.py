"""Feature: integrations, Property 6: plugin lifecycle.

For any interleaving of start, configure, crash, hang, upgrade and stop, the supervisor does what the model says;
no process is left behind, and no socket. The supervision itself runs here in a world without real time or
processes, many times over; a smaller number of stories is played with real ones.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foundation.clock import SystemClock
from foundation.process.child import Child
from foundation.process.errors import HopelessError, LaunchError
from foundation.process.exits import Exit
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import Rules, State, Supervised
from foundation.process.testing import gone, until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import Served
from services.registry.catalogue.versions import Version
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from services.registry.host.rollouts import OVER, Rollouts
from services.registry.host.watchdog import Patience
from tests.services.registry.plugins import QUICK, group, hosting, make_plugin, served, titles
from tieline.common.v1.failure_pb2 import Failure

READY_WITHIN = 5.0
POLICY = RestartPolicy(base=1.0, cap=60.0, healthy_after=600.0, crash_limit=5)
HALF = 0.5


class Manner(Enum):
    """What a process will do when it is started."""

    SERVE = auto()
    DIE = auto()
    NOT_START = auto()
    SAY_NOTHING = auto()
    BE_SOMEBODY_ELSE = auto()


class _Timeless(selectors.SelectSelector):
    """Where the loop would wait, time passes."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class TimelessLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._timeless = _Timeless()
        super().__init__(self._timeless)

    def time(self) -> float:
        return self._timeless.now


class Actor:
    """A process without a process: it lives until it is told otherwise."""

    pid = 1

    def __init__(self, manner: Manner) -> None:
        self.manner = manner
        self.tail = ""
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if manner is Manner.DIE:
            self.end(1)

    @property
    def running(self) -> bool:
        return not self._ended.done()

    def end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(Exit.of("it", code))

    def kill(self) -> None:
        self.end(-9)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def stop(self, _grace: float | None = None) -> Exit:
        self.end(0)
        return await self.wait()


@dataclass
class Model:
    """What must become of it, by arithmetic alone."""

    manner: Manner = Manner.SERVE
    state: State = State.IDLE
    starts: int = 0
    crashes: int = 0
    attempt: int = 0
    since: float | None = None
    turn: float | None = None
    """When the present state ends by itself."""

    def pass_until(self, now: float) -> None:
        while self.turn is not None and self.turn <= now:
            at, self.turn = self.turn, None
            if self.state is State.WAITING:
                self.begin(at)
            else:
                self.crash(at)

    def begin(self, now: float) -> None:
        self.turn, self.since = None, None
        self.starts += 1
        match self.manner:
            case Manner.SERVE:
                self.state, self.since = State.READY, now
            case Manner.SAY_NOTHING:
                self.state, self.turn = State.STARTING, now + READY_WITHIN
            case Manner.BE_SOMEBODY_ELSE:
                self.count(now)
                self.state = State.FAILED
            case _:
                self.crash(now)

    def crash(self, now: float) -> None:
        delay = self.count(now)
        self.state, self.turn = (State.FAILED, None) if delay is None else (State.WAITING, now + delay)
        self.pass_until(now)

    def count(self, now: float) -> float | None:
        """The delay until the next start, if there is one."""
        if self.since is not None and now - self.since >= POLICY.healthy_after:
            self.forgive()
        self.since = None
        self.crashes += 1
        if self.crashes >= 5:
            return None
        self.attempt += 1
        return 0.0 if self.attempt == 1 else HALF * min(2.0 ** (self.attempt - 2), POLICY.cap)

    def forgive(self) -> None:
        self.crashes = self.attempt = 0


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = TimelessLoop()
        self.model = Model()
        self.actors: list[Actor] = []
        self.supervised = Supervised(
            "it",
            self._launch,
            self._probe,
            Rules(ready_within=READY_WITHIN, policy=POLICY),
            clock=self.loop.time,
            chance=lambda: HALF,
        )

    async def _launch(self) -> Child:
        if self.model.manner is Manner.NOT_START:
            self.actors.append(Actor(Manner.DIE))
            raise LaunchError("it is not there")
        self.actors.append(Actor(self.model.manner))
        return cast("Child", self.actors[-1])

    async def _probe(self) -> bool:
        if self.actors[-1].manner is Manner.BE_SOMEBODY_ELSE:
            raise HopelessError("it is somebody else")
        return self.actors[-1].manner is Manner.SERVE

    def play(
        self, act: Callable[[], Coroutine[Any, Any, None] | None] = lambda: None, seconds: float = 0
    ) -> None:
        async def played() -> None:
            if (doing := act()) is not None:
                await doing
            await asyncio.sleep(seconds)
            for _ in range(50):  # whatever follows at this very moment
                await asyncio.sleep(0)

        self.loop.run_until_complete(played())
        self.model.pass_until(self.loop.time())

    @initialize(manner=st.sampled_from(Manner))
    def start(self, manner: Manner) -> None:
        self.model.manner = manner
        self.model.begin(0.0)
        self.play(self.supervised.keep)

    @rule(manner=st.sampled_from(Manner))
    def behave_from_now_on(self, manner: Manner) -> None:
        self.model.manner = manner

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.0, 4.0, 30.0, 700.0]))
    def let_time_pass(self, seconds: float) -> None:
        # A turn on the very moment of a look could go either way; nothing else ends on such a fraction.
        self.play(seconds=seconds + 0.013)

    @precondition(lambda self: self.model.state is State.READY)
    @rule()
    def crash(self) -> None:
        self.model.crash(self.loop.time())
        self.play(lambda: self.actors[-1].end(-11))

    @precondition(lambda self: self.model.state is State.READY)
    @rule()
    def hang(self) -> None:
        self.model.crash(self.loop.time())
        self.play(lambda: self.supervised.end("it hangs"))

    @precondition(lambda self: self.model.state is State.READY)
    @rule()
    def be_of_use(self) -> None:
        self.model.crashes = 0
        self.play(self.supervised.restarts.proved)

    @rule()
    def be_excused(self) -> None:
        self.model.crashes, self.model.attempt = (
            max(0, self.model.crashes - 1),
            max(0, self.model.attempt - 1),
        )
        self.play(lambda: self.supervised.restarts.excuse(1))

    @rule()
    def release(self) -> None:
        if self.model.state is State.FAILED:
            self.model.forgive()
            self.model.begin(self.loop.time())
        self.play(self.supervised.release)

    @rule()
    def restart(self) -> None:
        if self.model.state not in {State.STOPPED, State.IDLE}:
            self.model.forgive()
            self.model.begin(self.loop.time())
        self.play(self.supervised.restart)

    @rule()
    def stop(self) -> None:
        self.model.state, self.model.turn = State.STOPPED, None
        self.play(self.supervised.stop)

    @invariant()
    def model_and_supervisor_agree(self) -> None:
        assert self.supervised.state is self.model.state
        assert len(self.actors) == self.model.starts
        waits = self.model.state is State.WAITING
        assert self.supervised.next_start == (self.model.turn if waits else None)

    @invariant()
    def there_is_one_process_or_none(self) -> None:
        alive = [actor for actor in self.actors if actor.running]
        assert alive == self.actors[-1:] if self.model.state in {State.READY, State.STARTING} else not alive

    def teardown(self) -> None:
        self.play(self.supervised.stop)
        assert not any(actor.running for actor in self.actors), "nobody is left behind"
        with suppress(RuntimeError):
            self.loop.close()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class Event(Enum):
    """What happens to a real one."""

    CALL = auto()
    CONFIGURE = auto()
    CRASH = auto()
    HANG = auto()
    RESTART = auto()
    UPGRADE = auto()
    VANISH = auto()


@dataclass
class Story:
    """One plugin in two versions, one instance, and a broker that calls it."""

    host: Host
    folder: Path
    one: Served = field(default_factory=lambda: served("one"))
    seen: set[int] = field(default_factory=set)
    revision: int = 1

    def __post_init__(self) -> None:
        self.broker = Broker(self.host, self)
        self.rollouts = Rollouts(self.host, self, SystemClock())

    async def find(self, connection: str) -> Served | None:
        return self.one if connection == self.one.connection else None

    def of_plugin(self, _plugin: str, _version: Version) -> list[Served]:
        return [self.one]

    async def prepare(self, process: PluginProcess, instance: Served) -> Failure | None:
        return await self.broker.prepare(process, instance)

    @property
    def process(self) -> PluginProcess:
        return self.host.processes["one"]

    async def happen(self, event: Event) -> None:
        pid = self.process.pid
        match event:
            case Event.CONFIGURE:
                self.revision += 1
                self.one = served("one", settings=b'{"word": " again"}', revision=self.revision)
            case Event.CRASH if pid is not None:
                os.kill(pid, signal.SIGKILL)
            case Event.HANG if pid is not None:
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: self.process.pid != pid, 60)
            case Event.RESTART:
                await self.process.restart()
            case Event.UPGRADE:
                await self._upgrade()
            case Event.VANISH:
                await self._vanish()
        await self.serves()

    async def serves(self) -> None:
        """Sooner or later, without anybody's help, and never with the settings before."""

        async def served_now() -> bool:
            (result,) = await self.broker.transform([group(self.one, "x")])
            if not result.HasField("failure"):
                assert titles(result) == ["x again" if self.revision > 1 else "x"]
                return True
            return False

        await until(served_now, 60)
        self.seen.update(process.pid for process in self.host.everything() if process.pid)

    async def _upgrade(self) -> None:
        present = self.host.serving("one")
        target = Version(2, 0, 0) if present == Version(1, 0, 0) else Version(1, 0, 0)
        rollout = self.rollouts.start("one", target, timedelta(seconds=0.3))
        await until(lambda: rollout.stage in OVER, 60)
        assert self.host.serving("one") == target, rollout.failure

    async def _vanish(self) -> None:
        """Its folder goes and comes back, as when somebody installs it anew."""
        self.folder.rename(away := self.folder.parents[1] / "away")
        await until(lambda: "one" not in self.host.processes, 60)
        away.rename(self.folder)
        await until(lambda: "one" in self.host.processes, 60)


@settings(max_examples=4)
@given(st.lists(st.sampled_from(Event), min_size=3, max_size=6))
async def test_a_real_plugin_lives_through_any_story(events: list[Event]) -> None:
    await play(events)


async def test_a_real_plugin_lives_through_all_of_it() -> None:
    await play([*Event, Event.CRASH, Event.UPGRADE, Event.CALL])


async def play(events: list[Event]) -> None:
    patience = Patience(look_seconds=0.2, answer_within=2.0, silent_looks=2)
    with TemporaryDirectory(prefix="tl-", dir="/tmp") as directory:
        where = Path(directory)
        make_plugin(where / "p" / "both", "one", version="1.0.0", folder="a")
        make_plugin(where / "p" / "both", "one", version="2.0.0", folder="b")
        (where / "room").mkdir()
        async with hosting(where / "p", below=where / "room", policy=QUICK, patience=patience) as host:
            story = Story(host, where / "p" / "both")
            async with story.rollouts:
                await story.serves()
                for event in events:
                    await story.happen(event)
        await gone(story.seen, 30.0)
        assert not list((where / "room").iterdir()), "no socket is left"
