"""One child kept alive: started, probed until ready, watched, restarted with patience, stopped in order."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from foundation.process.child import Child
from foundation.process.errors import HopelessError, NotReadyError, ProcessError
from foundation.process.exits import Exit
from foundation.process.restart import GiveUp, RestartPolicy, Restarts

Launch = Callable[[], Awaitable[Child]]
Probe = Callable[[], Awaitable[bool]]

_POLL_FIRST, _POLL_LAST = 0.02, 0.25  # seconds between two looks of a probe


class State(StrEnum):
    """Where a supervised child stands; FAILED waits for `release` or `restart`."""

    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # dead, to be started again after a delay
    FAILED = "failed"  # a crash loop: nobody tries any more
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Report:
    """What is known about one death."""

    sentence: str
    exit: Exit | None  # None: it was never executed
    tail: str  # not redacted
    was_ready: bool
    hopeless: bool = False  # another start would end the same way


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How one child is supervised."""

    ready_within: float = 30.0
    policy: RestartPolicy = field(default_factory=RestartPolicy)


_DEFAULT_RULES = Rules()


def _unheard(_state: State, _report: Report | None) -> None:
    """Nobody listens."""


class Supervised:
    """Owns one child at a time and the task that follows its lives.

    `launch` makes a new child (and whatever it needs before: a lock, a file), `probe` says whether it serves.
    `on_change` hears every change of state, with the report of the death that caused it.
    """

    def __init__(
        self,
        name: str,
        launch: Launch,
        probe: Probe,
        rules: Rules = _DEFAULT_RULES,
        *,
        on_change: Callable[[State, Report | None], None] = _unheard,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.state = State.IDLE
        self.child: Child | None = None
        self.last: Report | None = None
        self.next_start: float | None = None
        """By its clock; None unless it waits."""
        self.restarts = Restarts(rules.policy, chance)
        self._launch, self._probe, self._rules = launch, probe, rules
        self._on_change, self._clock = on_change, clock
        self._changed = asyncio.Event()
        self._hurried = asyncio.Event()
        """Somebody wants it to be tried now: a delay or a failure is over."""
        self._renewing = False
        self._ended_because = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready. A first start that fails is an error, not a case for patience."""
        if self._task is not None:
            raise ProcessError(f"{self.name} was started before")
        try:
            death = await self._begin()
        except BaseException:
            await self.stop(grace=0)
            raise
        if death is not None:
            self._move(State.STOPPED, death)
            raise NotReadyError(death.sentence)
        self._task = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    def keep(self) -> None:
        """Start it and wait for nothing: a first start that fails is tried again like any other."""
        if self._task is not None:
            raise ProcessError(f"{self.name} was started before")
        self._task = asyncio.create_task(self._supervise(), name=f"supervise {self.name}")

    async def ready(self) -> None:
        """Wait until it serves; raises when nobody tries any more."""
        while self.state is not State.READY:
            if self.state in {State.FAILED, State.STOPPED}:
                raise NotReadyError(
                    f"{self.name} is {self.state}" + (f": {self.last.sentence}" if self.last else "")
                )
            await self._changed.wait()

    def now(self) -> float:
        """What its clock says: what `next_start` is told by."""
        return self._clock()

    def release(self) -> None:
        """Out of FAILED: try again, with nothing held against it."""
        if self.state is State.FAILED:
            self.restarts.forgive()
            self._move(State.STARTING, None)
            self._hurried.set()

    async def restart(self, grace: float | None = None) -> None:
        """End it in order and start it anew, with nothing held against it. Returns when the old one is gone."""
        if self._task is None or self.state in {State.STOPPING, State.STOPPED}:
            return
        self.restarts.forgive()
        if self.state in {State.WAITING, State.FAILED}:
            self._hurried.set()
        elif self.child is not None and self.child.running:
            self._renewing = True
            await self.child.stop(grace)

    def end(self, why: str) -> None:
        """Kill it for a reason, which its report will say. It counts as a crash."""
        if self.child is not None and self.child.running:
            self._ended_because = why
            self.child.kill()

    def kill(self) -> None:
        """The last word, when the time for stopping has run out."""
        if self.child is not None:
            self.child.kill()

    async def stop(self, grace: float | None = None) -> None:
        """End it in order, and supervision with it. May be called again."""
        if self.state is State.STOPPED:
            return
        self._move(State.STOPPING, None)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.child is not None:
            await self.child.stop(grace)
        self._move(State.STOPPED, None)

    async def _supervise(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - a task's border: a broken probe must not look like health
                self.kill()
                broken = Report(
                    f"the supervision of {self.name} failed: {error!r}", None, "", was_ready=False
                )
                await self._give_up(self._told(broken))

    async def _follow(self) -> None:
        """A life, a death, a delay, the next life."""
        death: Report | None = None
        while True:
            if self.state is not State.READY:
                death = await self._begin()
                if death is not None and self._renewing:
                    continue
            if death is None and self.child is not None:
                exit_ = await self.child.wait()
                if self._renewing:
                    self._move(State.STARTING, None)
                    continue
                death = self._died(exit_, was_ready=True)
            if death is not None:
                await self._patience(death)

    async def _patience(self, death: Report) -> None:
        verdict = self.restarts.crashed(self._clock())
        self._hurried.clear()
        if isinstance(verdict, GiveUp) or death.hopeless:
            await self._give_up(death)
            return
        self._move(State.WAITING, death, verdict.after)
        with suppress(TimeoutError):
            async with asyncio.timeout(verdict.after):
                await self._hurried.wait()

    async def _give_up(self, report: Report) -> None:
        self._hurried.clear()
        self._move(State.FAILED, report)
        await self._hurried.wait()

    async def _begin(self) -> Report | None:
        """One start; the report of its failure, or None when the child is ready."""
        if self.state is not State.STARTING:
            self._move(State.STARTING, None)
        self._renewing, self._ended_because = False, ""
        try:
            self.child = await self._launch()
        except ProcessError as error:
            hopeless = isinstance(error, HopelessError)
            return self._told(Report(error.sentence, None, "", was_ready=False, hopeless=hopeless))
        try:
            async with asyncio.timeout(self._rules.ready_within):
                ready = await self._probed(self.child)
        except TimeoutError:
            await self.child.stop(0)
            within = f"{self.name} was not ready within {self._rules.ready_within:g} s"
            return self._told(Report(within, await self.child.wait(), self.child.tail, was_ready=False))
        except HopelessError as error:
            exit_ = await self.child.stop(0)
            return self._told(Report(error.sentence, exit_, self.child.tail, was_ready=False, hopeless=True))
        if not ready:
            return self._died(await self.child.wait(), was_ready=False)
        self.restarts.ready(self._clock())
        self._move(State.READY, None)
        return None

    async def _probed(self, child: Child) -> bool:
        """True when the probe is content, False when the child died before; a probe may hang."""
        dead, content = asyncio.create_task(child.wait()), asyncio.create_task(self._content())
        try:
            await asyncio.wait((dead, content), return_when=asyncio.FIRST_COMPLETED)
            return not dead.done() and content.result()
        finally:
            dead.cancel()
            content.cancel()
            await asyncio.gather(dead, content, return_exceptions=True)

    async def _content(self) -> bool:
        pause = _POLL_FIRST
        while not await self._probe():
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_LAST)
        return True

    def _died(self, exit_: Exit, *, was_ready: bool) -> Report:
        tail = self.child.tail if self.child is not None else ""
        # Who was killed had no time to say why: its last line is about something else.
        last_line = tail.strip().rpartition("\n")[2] if exit_.signal is None else ""
        sentence = exit_.sentence if was_ready else f"{exit_.sentence} before it was ready"
        if self._ended_because:
            last_line, sentence = "", f"{self.name} was ended: {self._ended_because}"
        return self._told(
            Report(f"{sentence}: {last_line}" if last_line else sentence, exit_, tail, was_ready)
        )

    def _told(self, report: Report) -> Report:
        self.last = report
        return report

    def _move(self, state: State, report: Report | None, after: float | None = None) -> None:
        self.state, self.next_start = state, None if after is None else self._clock() + after
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change(state, report)
