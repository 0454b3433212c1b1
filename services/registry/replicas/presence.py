"""A replica says that it lives and what it runs, and does what others ask of it.

What changes is written once a second at most; how much memory a process has and what it does at the moment changes
always, and is written now and then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.host.described import told_rollout
from services.registry.host.host import Host
from services.registry.host.rollouts import OVER
from services.registry.replicas import store
from services.registry.replicas.own import Own
from services.registry.replicas.replica import Life, lives
from services.registry.replicas.store import Order, Outcome
from tieline.registry.v1.processes_pb2 import Process

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.4
BEAT_SECONDS = 2.0
TELL_SECONDS = 1.0
VOLATILE_SECONDS = 15.0
SWEEP_SECONDS = 600.0


class Beats:
    """What is due of several things that recur."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def due(self, what: str, every: float) -> bool:
        now = self._clock.monotonic()
        if now - self._last.get(what, -every) < every:
            return False
        self._last[what] = now
        return True


class Presence:
    """`async with` it."""

    def __init__(
        self,
        own: Own,
        worker: Store,
        host: Host,
        clock: Clock,
        counted: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`counted` is told now and then how many replicas there are."""
        self._counted = counted
        self._own, self._worker, self._host = own, worker, host
        self._beats = Beats(clock)
        self._clock, self._life = clock, Life.own()
        self._told: dict[str, bytes] = {}
        """What was written of each process, without what changes always."""
        self._rollouts: dict[str, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self._orders: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._bury_neighbours()
        except StoreError as away:
            log.debug("who died on this machine is noticed by its silence", why=str(away))
        self._task = asyncio.create_task(self._keep(), name="tell what this replica runs")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        for order in list(self._orders):
            await end(order)
        try:
            async with self._worker.across_tenants() as work:
                await store.leave(work, self._own.replica)
        except StoreError as away:
            log.debug("others will notice that we are gone", why=str(away))

    async def _bury_neighbours(self) -> None:
        """Who was killed on this machine before we were started has left its processes in the lists."""
        async with self._worker.across_tenants() as work:
            for replica, process in await store.neighbours(work, self._own.replica, self._life.machine):
                if not lives(process):
                    await store.leave(work, replica)

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
            except Problem as away:
                log.debug("what this replica runs is not told now", why=str(away))
                self._beats = Beats(self._clock)
            except Exception:  # a task's border
                log.exception("what this replica runs could not be told")
            await self._clock.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        """One transaction: what is remembered as told was told."""
        changed, gone, told = self._changes() if self._beats.due("tell", TELL_SECONDS) else ({}, [], None)
        rollouts = {one.name: one for one in self._own.rollouts.everything()}
        news = {
            name: text
            for name, one in rollouts.items()
            if (text := told_rollout(one).SerializeToString(deterministic=True)) != self._rollouts.get(name)
        }
        unknown = False
        async with self._worker.across_tenants() as work:
            if self._beats.due("beat", BEAT_SECONDS):
                unknown = await store.beat(work, self._own.replica, self._own.host_name, self._life)
                self._counted(await store.count(work))
            await store.describe(work, self._own.replica, changed, gone)
            for name, text in news.items():
                await store.tell_rollout(work, name, text, is_over=rollouts[name].stage in OVER)
            if self._beats.due("sweep", SWEEP_SECONDS):
                await store.sweep(work)
            orders = await store.take(work, self._own.replica)
        self._told = self._told if told is None else told
        if unknown:  # or somebody thought that we were gone: then all of it is told again
            self._told = {}
        self._rollouts.update(news)
        if self._beats.due("shifts", BEAT_SECONDS):
            self._host.look()
        for order in orders:
            task = asyncio.create_task(self._do(order), name=f"{order.verb} {order.resource}")
            self._orders.add(task)
            task.add_done_callback(self._orders.discard)

    def _changes(self) -> tuple[dict[str, bytes], list[str], dict[str, bytes]]:
        now = self._own.processes()
        lasting = {name: _lasting(one) for name, one in now.items()}
        every = self._beats.due("volatile", VOLATILE_SECONDS)
        changed = {
            name: one.SerializeToString(deterministic=True)
            for name, one in now.items()
            if every or lasting[name] != self._told.get(name)
        }
        return changed, [name for name in self._told if name not in now], lasting

    async def _do(self, order: Order) -> None:
        try:
            outcome = Outcome(await self._obey(order), None)
        except Problem as problem:
            outcome = Outcome(None, json.dumps([problem.code.name, problem.data]))
        except Exception:  # a task's border: whoever waits is told, and others served
            log.exception("what another replica asked could not be done", verb=order.verb)
            why = ["INTERNAL", {}]
            outcome = Outcome(None, json.dumps(why))
        try:
            async with self._worker.across_tenants() as work:
                await store.end(work, order.id, outcome)
        except StoreError as away:
            log.warning("another replica is not told what came of its order", why=str(away))

    async def _obey(self, order: Order) -> bytes:
        match order.verb:
            case "restart":
                done = await self._own.restart(order.resource, order.request_id)
                return done.SerializeToString()
            case "release":
                return self._own.release(order.resource).SerializeToString()
            case "cancel":
                return (await self._own.cancel(order.resource)).SerializeToString()
            case _:  # of a version to come
                raise Problem(Code.UNIMPLEMENTED, method=order.verb)


def _lasting(process: Process) -> bytes:
    kept = Process()
    kept.CopyFrom(process)
    kept.ClearField("memory_bytes")
    kept.ClearField("calls_in_flight")
    return kept.SerializeToString(deterministic=True)
