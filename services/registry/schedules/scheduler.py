"""Polls what is due. Replicas share the work by claiming it in the database, each what it has room for.

A claim is a lease. It is renewed while the poll runs; who cannot renew it ends the poll before it runs out, so
that of two replicas never both poll, and what a dead one had is taken over when its leases are over. Against a
replica that only slept the checkpoints' fence helps, and the inbox's.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.notices import outbox
from foundation.process.supervised import State as Process
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.broker.failures import internal
from services.registry.host.host import Host
from services.registry.host.process import CALLS_IN_FLIGHT
from services.registry.polling.poller import Ended, Polled
from services.registry.schedules import store
from services.registry.schedules.errands import Errands
from services.registry.schedules.measuring import PollMetrics
from services.registry.schedules.planning import Next, Room, Turn, after, choose
from services.registry.schedules.schedule import Key, Kind, State
from services.registry.schedules.store import Claimed, Found
from services.registry.schedules.telling import stopped

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    look_seconds: float = 0.5
    lease_seconds: float = 10.0
    renew_seconds: float = 2.0
    margin_seconds: float = 3.0
    """So long before a lease runs out that could not be renewed, its poll is broken off."""
    count_seconds: float = 15.0
    patience_seconds: float = 5.0
    """So long a replica whose process does not work leaves what is due to others."""
    polls: int = 32
    """At once, in this process."""
    polls_of_connection: int = 4
    history: int = 8
    """Of the polls, those that may read the past."""
    history_of_connection: int = 1
    keep_days: int = 7
    """Backfills that have ended are shown for so long."""


@dataclass(slots=True)
class UnderWay:
    claimed: Claimed
    plugin: str
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Held:
    """What is being polled here."""

    polls: dict[Key, UnderWay] = field(default_factory=dict)
    sure_until: float = 0.0
    """Until then all of them are ours, whatever becomes of the database."""

    def of_plugins(self) -> Counter[str]:
        return Counter(one.plugin for one in self.polls.values())

    @property
    def history(self) -> int:
        return sum(one.claimed.kind is Kind.BACKFILL for one in self.polls.values())


class Scheduler:
    """`async with` it."""

    def __init__(
        self,
        owner: str,
        worker: Store,
        host: Host,
        errands: Errands,
        *,
        clock: Clock,
        metrics: PollMetrics,
        pace: Pace | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._owner, self._worker, self._host = owner, worker, host
        self._errands, self._clock, self._metrics = errands, clock, metrics
        self._pace, self._chance = pace or Pace(), chance
        self._held = Held()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def notice(self) -> None:
        """Something became due."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep(), name="poll what is due"),
            asyncio.create_task(self._renew(), name="renew the leases of polls"),
            asyncio.create_task(self._count(), name="count schedules"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await end(task)
        polls = [one.task for one in self._held.polls.values() if one.task is not None]
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        try:
            async with self._worker.across_tenants() as work:
                await store.release(work, self._owner)
        except StoreError as away:
            log.debug("leases of polls run out by themselves", why=str(away))

    async def _keep(self) -> None:
        while True:
            begun = 0
            try:
                begun = await self._look()
            except Problem as away:
                log.debug("nothing is polled now", why=str(away))
            except Exception:  # a task's border: the next look may find what this one did not
                log.exception("what is due could not be polled")
            if not begun:
                await woken(self._wanted, self._pace.look_seconds)

    async def _look(self) -> int:
        """How many polls began."""
        room = self._room()
        if not room.total or not room.plugins:
            return 0
        asked = self._clock.monotonic()
        async with self._worker.across_tenants() as work:
            if await store.spread(work):
                log.info("polls that are overdue are made up for over a while")
            due = await store.due(work, room.plugins, self._pace.polls_of_connection)
            due = [one for one in due if one.late >= self._pace.patience_seconds or self._can(one.plugin)]
            if not due:
                return 0
            chosen = choose(due, await store.busy(work), room)
            claimed = await store.claim(work, chosen, self._owner, self._pace.lease_seconds) if chosen else []
        plugins = {(one.tenant, one.connection, one.id): one.plugin for one in chosen}
        if claimed and not self._held.polls:
            self._held.sure_until = self._sure(asked)
        for one in claimed:
            self._begin(one, plugins[one.key.tenant, one.key.connection, one.key.id])
        return len(claimed)

    def _room(self) -> Room:
        pace, held = self._pace, self._held
        return Room(
            total=pace.polls - len(held.polls),
            bulk=pace.history - held.history,
            live_of_connection=pace.polls_of_connection,
            bulk_of_connection=pace.history_of_connection,
            plugins=self._plugins(held.of_plugins()),
        )

    def _plugins(self, busy: Mapping[str, int]) -> dict[str, int]:
        """Polls may take half of a process: what arrives meanwhile has to be transformed, too."""
        found = {}
        for plugin in self._host.catalogue.content.names():
            manifest = self._host.manifest(plugin)
            if manifest is not None:
                half = max(1, (manifest.limits.calls_in_flight or CALLS_IN_FLIGHT) // 2)
                if half > busy.get(plugin, 0):
                    found[plugin] = half - busy.get(plugin, 0)
        return found

    def _can(self, plugin: str) -> bool:
        """Where its process is in quarantine, other replicas come first; with none, the polls tell why they fail."""
        process = self._host.processes.get(plugin)
        return process is not None and process.state is not Process.FAILED

    def _sure(self, asked: float) -> float:
        return asked + self._pace.lease_seconds - self._pace.margin_seconds

    def _begin(self, one: Claimed, plugin: str) -> None:
        self._metrics.began(one.late)
        under_way = self._held.polls[one.key] = UnderWay(one, plugin)
        under_way.task = asyncio.create_task(self._poll(one), name=f"poll {one.key.name}")
        under_way.task.add_done_callback(partial(self._ended, one.key))

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        # It may be somebody's turn again before the task that gave it back is over.
        held = self._held.polls.get(key)
        if held is not None and held.task is task:
            del self._held.polls[key]
        self._wanted.set()

    async def _poll(self, one: Claimed) -> None:
        began, polled = self._clock.monotonic(), None
        try:
            polled = await self._errands.run(one)
        except Problem as away:
            log.debug("a poll ends, and its lease runs out", schedule=one.key.name, why=str(away))
        except Exception as error:  # a task's border: one strange schedule must not end the others' service
            log.exception("a poll could not be made", schedule=one.key.name)
            polled = Polled(
                Ended.FAILED, failure=internal("DEFECT", f"polling raised {type(error).__name__}")
            )
        finally:
            self._metrics.ended(polled, self._clock.monotonic() - began)
        if polled is not None:
            await self._finish(one, polled, self._clock.monotonic() - began)

    async def _finish(self, one: Claimed, polled: Polled, took: float) -> None:
        turn = Turn(
            interval=one.interval,
            gap=one.gap,
            phase=one.phase,
            late=one.late,
            took=took,
            failures=one.failures,
            finite=one.kind is Kind.BACKFILL,
            stops=self._errands.stops(one),
        )
        then: Next = after(turn, polled, self._chance())
        found = Found(polled.records, caught_up=polled.ended is Ended.CAUGHT_UP)
        try:
            async with self._worker.unit_of_work(tenants=[one.key.tenant]) as work:
                kept = await store.finish(work, one, self._owner, found, then)
                if kept and then.state is State.STOPPED:
                    await outbox.add(work, stopped(one, then, self._clock.now()))
        except StoreError as away:
            log.debug("how a poll ended is not kept", schedule=one.key.name, why=str(away))

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._pace.renew_seconds)
            if not self._held.polls:
                continue
            try:
                await self._renew_once()
            except (Problem, TimeoutError) as away:
                log.debug("leases of polls are not renewed", why=str(away))
            except Exception:  # a task's border: without renewal every poll is broken off
                log.exception("leases of polls are not renewed")
            if self._clock.monotonic() >= self._held.sure_until:
                self._break_off(set(self._held.polls), "the database is away")

    async def _renew_once(self) -> None:
        mine, asked = set(self._held.polls), self._clock.monotonic()
        async with asyncio.timeout(max(0.1, self._held.sure_until - asked)):
            async with self._worker.across_tenants() as work:
                kept = await store.renew(work, self._owner, self._pace.lease_seconds)
        self._held.sure_until = self._sure(asked)
        # What began meanwhile was not there to be renewed, and is younger than this.
        self._break_off(mine - kept, "it is not ours any more")

    def _break_off(self, keys: set[Key], why: str) -> None:
        for key in keys & set(self._held.polls):
            log.info("a poll is broken off", schedule=key.name, why=why)
            task = self._held.polls[key].task
            if task is not None:
                task.cancel()

    async def _count(self) -> None:
        while True:
            try:
                async with self._worker.across_tenants() as work:
                    self._metrics.stand(await store.states(work))
                    await store.sweep(work, self._pace.keep_days)
            except Problem as away:
                log.debug("schedules are not counted", why=str(away))
            except Exception:  # a task's border
                log.exception("schedules could not be counted")
            await self._clock.sleep(self._pace.count_seconds)
