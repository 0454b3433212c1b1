"""Runs what is due: claims it, calls the plugin, stores what came of it. Every replica has one.

RUNNING is committed before the plugin is called, with a lease that this process renews. What nobody renews any more
is found by whoever looks next, who knows that the attempt may have had its effect. An answer counts only under the
claim that it was asked for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Self

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.operations import queue, store
from services.registry.operations.attempting import Performs, ask, attempt
from services.registry.operations.bell import Bell
from services.registry.operations.machine import (
    Begun,
    Done,
    Expired,
    Failed,
    GoesOn,
    Happening,
    Impossible,
    Lost,
    Machine,
    Policy,
)
from services.registry.operations.measuring import OperationMetrics
from services.registry.operations.operation import Operation
from services.registry.operations.queue import Shares

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
"""How late a replica learns of what another one has queued, or of a pause that is over."""
PAUSE_SECONDS = 0.5
"""After the store has failed."""
SWEPT = 100
HOLD_SECONDS = 1.0
MARGIN_SECONDS = 1.0
"""By which a call may outlive its deadline."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one replica has under way at a time, and for how long it may be silent."""

    attempts: int = 16
    asks: int = 8
    of_tenant: int = 12
    of_connection: int = 4
    lease: float = 30.0
    drain: float = 5.0


class Runner:
    """`async with` it: works while inside; at the end what is under way may finish for `drain` seconds."""

    def __init__(
        self,
        worker: Store,
        broker: Performs,
        bell: Bell,
        clock: Clock,
        *,
        owner: str,
        ready: Callable[[], bool] = lambda: True,
        machine: Machine | None = None,
        bounds: Bounds | None = None,
        metrics: OperationMetrics | None = None,
    ) -> None:
        self._worker, self._broker, self._bell, self._clock = worker, broker, bell, clock
        self._owner, self._ready = owner, ready
        self._machine, self._bounds = machine or Machine(), bounds or Bounds()
        self._metrics = metrics
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._asks: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._run(), name="run operations"),
            asyncio.create_task(self._renew(), name="renew the leases of operations"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        running, renewing = self._tasks
        await end(running)
        if under_way := [*self._attempts.values(), *self._asks.values()]:
            await asyncio.wait(under_way, timeout=self._bounds.drain)
        await asyncio.gather(*map(end, [*self._attempts.values(), *self._asks.values()]))
        await end(renewing)
        try:
            async with self._worker.across_tenants() as work:
                await queue.give_back(work, self._owner, self._clock.now())
        except StoreError as away:
            log.debug("operations are found when their leases are over", why=str(away))

    async def _run(self) -> None:
        while True:
            pause = POLL_SECONDS
            try:
                if self._ready() and await self.look():
                    continue
            except Problem as away:
                log.debug("no operation is taken", why=str(away))
                pause = PAUSE_SECONDS
            except Exception:  # a task's border: the work goes on
                log.exception("no operation is taken")
                pause = PAUSE_SECONDS
            await woken(self._bell.runner, pause)

    async def look(self) -> bool:
        """Whether there was something to begin."""
        await self._sweep()
        begun = await self._begin()
        asked = await self._ask()
        return bool(begun or asked)

    async def _sweep(self) -> None:
        """What was lost on the way, and what waited for too long."""
        now = self._clock.now()
        async with self._worker.across_tenants() as work:
            for operation in await queue.lost(work, now, SWEPT, self._attempts):
                log.warning("an attempt is lost", operation=operation.name)
                await self._advance(work, operation, Lost(operation.attempt_until))
                await store.release(work, operation)
            for operation in await queue.late(work, now, SWEPT):
                await self._advance(work, operation, Expired())

    async def _begin(self) -> int:
        room = self._bounds.attempts - len(self._attempts)
        if room <= 0:
            return 0
        begun: list[Operation] = []
        async with self._worker.across_tenants() as work:
            shares = Shares(self._bounds.of_tenant, self._bounds.of_connection)
            for operation in await queue.due(work, self._clock.now(), room, shares):
                await self._advance(work, operation, Begun())
                begun.append(await self._claimed(work, operation))
        for operation in begun:
            self._start(self._attempts, operation, partial(attempt, self._broker, operation))
        return len(begun)

    async def _ask(self) -> int:
        room = self._bounds.asks - len(self._asks)
        if room <= 0:
            return 0
        async with self._worker.across_tenants() as work:
            asked = [
                await self._claimed(work, operation)
                for operation in await queue.asked(work, self._clock.now(), room)
            ]
        for operation in asked:
            self._start(self._asks, operation, partial(ask, self._broker, operation))
        return len(asked)

    async def _claimed(self, work: AsyncConnection, operation: Operation) -> Operation:
        """As it is under our claim."""
        last = self._clock.now() + timedelta(seconds=operation.timeout + MARGIN_SECONDS)
        await store.claim(work, operation, self._owner, self._until(), last)
        found = await store.lock(work, operation.tenant, operation.id)
        assert found is not None  # noqa: S101  its row is locked
        return found

    def _start(
        self,
        under_way: dict[str, asyncio.Task[None]],
        operation: Operation,
        do: Callable[[], Awaitable[Happening]],
    ) -> None:
        task = asyncio.create_task(self._carry(operation, do), name=f"run {operation.name}")
        under_way[operation.id] = task

        def done(_: asyncio.Task[None]) -> None:
            del under_way[operation.id]
            self._bell.ring()

        task.add_done_callback(done)
        self._bell.ring()

    async def _carry(self, operation: Operation, do: Callable[[], Awaitable[Happening]]) -> None:
        happening = await do()
        while True:  # what became of it is known here alone: it is stored as soon as it can be
            try:
                return await self.conclude(operation, happening)
            except Problem as away:
                log.debug("what became of an operation is stored later", why=str(away))
            except Exception:  # a task's border
                log.exception("what became of an operation is stored later", operation=operation.name)
            await asyncio.sleep(PAUSE_SECONDS)

    async def conclude(self, claimed: Operation, happening: Happening) -> None:
        """Store what became of it, if it is still ours to say."""
        async with self._worker.across_tenants() as work:
            found = await store.lock(work, claimed.tenant, claimed.id)
            if found is None or found.claim != claimed.claim:
                log.warning("somebody else has taken an operation over", operation=claimed.name)
                return
            try:
                await self._advance(work, found, happening)
            except Impossible as late:
                log.debug("what became of an operation was decided before", why=str(late))
            await store.release(work, found)
        self._bell.ring()

    async def _advance(self, work: AsyncConnection, was: Operation, happening: Happening) -> None:
        now = self._clock.now()
        progress = self._machine.step(was.progress, happening, now, _chance())
        await store.update(work, was, progress, now)
        if progress.away and progress.due is not None:
            waited = await queue.waits(work, was) + 1
            bound = min(self._machine.policy.wait_cap, HOLD_SECONDS * 2.0 ** min(waited - 1, 30))
            asked = _asked(happening, self._machine.policy)
            until = now + timedelta(seconds=asked + bound * _chance())
            await queue.hold(work, was, waited, until)
        elif isinstance(happening, Done | GoesOn) or (isinstance(happening, Failed) and happening.reached):
            await queue.open_lane(work, was, now)
        if self._metrics is not None:
            self._metrics.happened(was.progress, happening, progress)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._bounds.lease / 3)
            if not self._attempts and not self._asks:
                continue
            try:
                async with self._worker.across_tenants() as work:
                    await queue.renew(work, self._owner, self._until())
            except Problem as away:
                log.debug("leases of operations are not renewed", why=str(away))
            except Exception:  # a task's border
                log.exception("leases of operations are not renewed")

    def _until(self) -> datetime:
        return self._clock.now() + timedelta(seconds=self._bounds.lease)


def _asked(happening: Happening, policy: Policy) -> float:
    if isinstance(happening, Failed) and happening.failure.HasField("retry_after"):
        return min(policy.longest, happening.failure.retry_after.ToTimedelta().total_seconds())
    return 0.0


def _chance() -> float:
    return random.random()  # noqa: S311  spreads, hides nothing
