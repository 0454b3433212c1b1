"""Changing the version that serves: the new one beside the old, tried with every instance, watched, taken back.

Before the shift a failure touches nobody. After it the old process stays until the time of observation is over,
so that going back is one step. Rollouts live with their host: one that ends leaves what serves as it is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, Protocol, Self, TypeVar

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.process.supervised import State
from services.registry.catalogue.versions import Version
from services.registry.host.host import Host, Routed
from services.registry.host.process import PluginDown, PluginProcess
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INTERNAL, Failure

log = structlog.get_logger(__name__)

OBSERVATION = timedelta(minutes=5)
LONGEST_OBSERVATION = timedelta(days=1)
READY_SECONDS = 60.0
LOOK_SECONDS = 0.2
CRASHES_IN_A_ROW = 4
"""More than one bad input causes, fewer than quarantine takes."""
CRASHES_IN_ALL = 8
KEPT = 100


class Stage(Enum):
    PREPARING = auto()
    SHIFTING = auto()
    OBSERVING = auto()
    DONE = auto()
    ROLLED_BACK = auto()


OVER = frozenset({Stage.DONE, Stage.ROLLED_BACK})


InstanceT = TypeVar("InstanceT", bound=Routed)


class Instances(Protocol[InstanceT]):
    """What a new version has to be tried with."""

    def of_plugin(self, plugin: str, version: Version) -> Sequence[InstanceT]:
        """Every instance that would move to this version."""

    async def prepare(self, process: PluginProcess, instance: InstanceT) -> Failure | None:
        """Have this very process take the instance; why it does not, or None."""


@dataclass(slots=True)
class Rollout:
    name: str
    plugin: str
    origin: Version
    target: Version
    observation: timedelta
    stage: Stage = Stage.PREPARING
    done: int = 0
    total: int = 0
    failure: Failure | None = None
    observe_until: datetime | None = None


class _FailedError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Rollouts:
    """`async with` it: rollouts under way end with it, where they are."""

    def __init__(self, host: Host, instances: Instances[Any], clock: Clock) -> None:
        self._host, self._instances, self._clock = host, instances, clock
        self._rollouts: OrderedDict[str, Rollout] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks.values()):
            await end(task)

    def start(self, plugin: str, target: Version, observation: timedelta, name: str = "") -> Rollout:
        """Begin it. The same one again is the one that is under way."""
        present = self.under_way(plugin)
        if present is not None:
            if present.target == target:
                return present
            why = f"{present.name} to {present.target} is under way"
            raise Problem(Code.STATE_REFUSES, what=f"{plugin}", wanted=f"upgraded to {target}", why=why)
        origin = self.demand_possible(plugin, target)
        name = name or f"plugins/{plugin}/rollouts/{secrets.token_hex(8)}"
        rollout = Rollout(name, plugin, origin, target, observation)
        self._rollouts[name] = rollout
        self._host.held |= {(plugin, origin), (plugin, target)}
        while len(self._rollouts) > KEPT and next(iter(self._rollouts.values())).stage in OVER:
            self._rollouts.popitem(last=False)
        task = asyncio.create_task(self._run(rollout), name=f"upgrade {plugin}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return rollout

    def demand_possible(self, plugin: str, target: Version) -> Version:
        """The version that would be left; a Problem where there is nothing to upgrade, or nothing to upgrade to."""
        origin = self._host.serving(plugin)
        if origin is None:
            raise Problem(Code.NOT_FOUND, what=f"plugin {plugin}, or a version of it that serves")
        self._demand_startable(plugin, target)
        if origin == target:
            why = "that version serves already"
            raise Problem(Code.STATE_REFUSES, what=plugin, wanted=f"upgraded to {target}", why=why)
        return origin

    def under_way(self, plugin: str) -> Rollout | None:
        return next(
            (one for one in self._rollouts.values() if one.plugin == plugin and one.stage not in OVER), None
        )

    def everything(self) -> Sequence[Rollout]:
        """Those that are remembered, oldest first."""
        return list(self._rollouts.values())

    def knows(self, name: str) -> bool:
        return name in self._rollouts

    def get(self, name: str) -> Rollout:
        if name not in self._rollouts:
            raise Problem(Code.NOT_FOUND, what=f"rollout {name}")
        return self._rollouts[name]

    async def cancel(self, name: str) -> Rollout:
        """Back to the version before."""
        rollout = self.get(name)
        if rollout.stage in OVER:
            raise Problem(Code.STATE_REFUSES, what=name, wanted="cancelled", why="it is over")
        await end(self._tasks.get(name))
        await self._roll_back(rollout, _failure("CANCELLED", "somebody cancelled it"))
        return rollout

    def _demand_startable(self, plugin: str, version: Version) -> None:
        published = self._host.catalogue.content.published.get((plugin, version))
        if published is None:
            raise Problem(Code.NOT_FOUND, what=f"version {version} of plugin {plugin}")
        if not published.startable:
            why = published.failure or "it is inactive, or not installed yet"
            raise Problem(Code.STATE_REFUSES, what=plugin, wanted=f"upgraded to {version}", why=why)

    async def _run(self, rollout: Rollout) -> None:
        try:
            process = await self._prepare(rollout)
            rollout.stage = Stage.SHIFTING
            await self._host.shift(rollout.plugin, rollout.target)
            rollout.stage = Stage.OBSERVING
            rollout.observe_until = self._clock.now() + rollout.observation
            log.info(
                "a plugin was upgraded and is observed", plugin=rollout.plugin, version=str(rollout.target)
            )
            await self._observe(rollout, process)
        except _FailedError as failed:
            await self._roll_back(rollout, failed.failure)
        except Exception as error:  # a task's border: what serves must not stay undecided
            log.exception("an upgrade failed")
            await self._roll_back(rollout, _failure("DEFECT", f"the upgrade failed ({type(error).__name__})"))
        else:
            rollout.stage = Stage.DONE
            self._let_go(rollout)
            self._host.retire(rollout.plugin, rollout.origin)
            log.info("a plugin's upgrade is done", plugin=rollout.plugin, version=str(rollout.target))

    async def _prepare(self, rollout: Rollout) -> PluginProcess:
        """The new process, with every instance that will move; nobody's calls go there yet."""
        process = self._host.beside(self._host.catalogue.content.published[rollout.plugin, rollout.target])
        try:
            async with process.call(READY_SECONDS):
                pass
        except PluginDown as down:
            raise _FailedError(_failure("NOT_READY", down.sentence)) from None
        instances = self._instances.of_plugin(rollout.plugin, rollout.target)
        rollout.total = len(instances)
        for instance in instances:
            failure = await self._instances.prepare(process, instance)
            if failure is not None:
                raise _FailedError(failure)
            rollout.done += 1
        return process

    async def _observe(self, rollout: Rollout, process: PluginProcess) -> None:
        until = self._clock.monotonic() + rollout.observation.total_seconds()
        while self._clock.monotonic() < until:
            if self._host.serving(rollout.plugin) != rollout.target:
                why = f"{rollout.plugin} {rollout.target} cannot be started any more"
                raise _FailedError(_failure("GONE", why))
            if why := _trouble(process):
                raise _FailedError(_failure("UNWELL", why))
            await self._clock.sleep(min(LOOK_SECONDS, max(until - self._clock.monotonic(), 0.01)))

    async def _roll_back(self, rollout: Rollout, failure: Failure) -> None:
        log.warning("a plugin's upgrade is taken back", plugin=rollout.plugin, why=failure.message)
        if self._host.serving(rollout.plugin) == rollout.target:
            await self._host.shift(rollout.plugin, rollout.origin)
        rollout.stage, rollout.failure = Stage.ROLLED_BACK, failure
        self._let_go(rollout)
        self._host.retire(rollout.plugin, rollout.target)

    def _let_go(self, rollout: Rollout) -> None:
        self._host.held -= {(rollout.plugin, rollout.origin), (rollout.plugin, rollout.target)}


def _trouble(process: PluginProcess) -> str:
    if process.state is State.FAILED:
        return process.explanation
    innocent = [crash for crash in process.crashes if not crash.suspects]
    if process.crashes_in_a_row >= CRASHES_IN_A_ROW or len(innocent) >= CRASHES_IN_ALL:
        return f"it crashes: {process.trouble or process.crashes[0].report.sentence}"
    return ""


def _failure(reason: str, message: str) -> Failure:
    return Failure(kind=FAILURE_KIND_INTERNAL, reason=reason, message=message[:1024])
