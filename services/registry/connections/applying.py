"""Brings what is wanted into effect: each new revision is tried beside the one that serves, in an instance of its own.

The plugin takes it, the provider accepts the credentials with every permission that is needed, the instance says
that it can work: only then it serves, and until then the one before does. What fails because something is away is
tried again, ever more patiently; anything else stays FAILED until somebody changes something. A revision is
claimed in the database by whoever applies it; what a dead one claimed is taken over soon.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from datetime import timedelta
from functools import partial
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.broker import failures
from services.registry.broker.broker import Broker
from services.registry.broker.examining import Examination
from services.registry.broker.serving import Served
from services.registry.connections import claims
from services.registry.connections.connection import Application, Connection
from services.registry.connections.picture import Picture
from services.registry.connections.wanted import webhooks_of
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure, FailureKind

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
EXTEND_SECONDS = claims.LEASE.total_seconds() / 3
AT_ONCE = 64
"""Revisions that one registry tries at a time."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

# Anything else is the last word on a revision.
_LATER = {
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_RATE_LIMITED,
    FailureKind.FAILURE_KIND_INTERNAL,
    FailureKind.FAILURE_KIND_NOT_PREPARED,
}


class Applier:
    """`async with` it: owned tasks apply what is pending, and keep their claims."""

    def __init__(self, worker: Store, host: Host, broker: Broker, picture: Picture, clock: Clock) -> None:
        self._worker, self._host, self._broker = worker, host, broker
        self._picture, self._clock = picture, clock
        self._owner = secrets.token_hex(8)
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def notice(self) -> None:
        """Something is pending."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep(), name="apply connections"),
            asyncio.create_task(self._keep_claims(), name="keep what is being applied"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._tasks, *self._under_way.values()]:
            await end(task)
        try:
            async with self._worker.across_tenants() as work:
                await claims.let_go(work, self._owner)
        except StoreError as away:
            log.info("what was being applied waits until its claim is over", why=str(away))

    async def _keep(self) -> None:
        while True:
            try:
                await self._pass()
            except Problem as away:
                log.debug("nothing was applied", why=str(away))
            except Exception:  # a task's border: what is pending stays, and so must this
                log.exception("what is pending could not be read")
            await woken(self._wanted, LOOK_SECONDS)

    async def _keep_claims(self) -> None:
        while True:
            await self._clock.sleep(EXTEND_SECONDS)
            if not self._under_way:
                continue
            try:
                async with self._worker.across_tenants() as work:
                    await claims.extend(
                        work, self._owner, [name.partition(" ")[0] for name in self._under_way]
                    )
            except Problem as away:
                log.debug("claims were not extended", why=str(away))
            except Exception:  # a task's border
                log.exception("claims could not be extended")

    async def _pass(self) -> None:
        room = AT_ONCE - len(self._under_way)
        if room <= 0:
            return
        async with self._worker.across_tenants() as work:
            pending = await claims.take_to_apply(work, self._owner, room)
        for connection in pending:
            # Each by itself: one whose provider is slow waits for it, and nobody waits for that one.
            name = f"{connection.name} {connection.revision}"
            task = asyncio.create_task(self._try(connection), name=f"apply {name}")
            self._under_way[name] = task
            task.add_done_callback(partial(self._done, name))

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        if self._under_way.get(name) is task:
            del self._under_way[name]
        self._wanted.set()  # there is room for another

    async def _try(self, connection: Connection) -> None:
        try:
            await self._apply(connection)
        except Problem as away:
            log.debug("a connection was not applied", why=str(away))
        except Exception:  # a task's border: one strange connection must not end the others' service
            log.exception("a connection could not be applied", connection=connection.name)

    async def _apply(self, connection: Connection) -> None:
        served = connection.served(connection.revision)
        process = self._host.route(served)
        if process is None:
            why = (
                f"the plugin {served.plugin} is not installed, or no version of it that may be chosen can run"
            )
            await self._postpone_or_fail(connection, failures.transient("PLUGIN_ABSENT", why))
            return
        with self._broker.examining.about(served):
            examination = await self._broker.examining.examine(process, served)
            if examination.failure is None:
                kept = await self._serve(connection, process, examination)
            else:
                kept = False
                await self._postpone_or_fail(connection, examination.failure)
        if not kept:
            await self._forget(connection, process, served)

    async def _serve(self, connection: Connection, process: PluginProcess, examination: Examination) -> bool:
        async with self._worker.across_tenants() as work:
            generation = await claims.applied(
                work,
                connection,
                self._owner,
                version=process.manifest.version,
                accounts=sorted(set(examination.accounts)),
                webhooks=webhooks_of(connection.wanted, process.manifest),
                now=self._clock.now(),
            )
        if generation:
            log.info("a revision serves", connection=connection.name, revision=connection.revision)
            await self._picture.reach(generation)
        return generation > 0

    async def _postpone_or_fail(self, connection: Connection, why: Failure) -> None:
        application = Application.PENDING if why.kind in _LATER else Application.FAILED
        log.info("a revision is not applied", connection=connection.name, application=application.value)
        async with self._worker.across_tenants() as work:
            await claims.not_applied(
                work,
                connection,
                self._owner,
                application=application,
                failure=why,
                pause=pause(connection.attempts, why),
                now=self._clock.now(),
            )

    async def _forget(self, connection: Connection, process: PluginProcess, served: Served) -> None:
        if connection.revision != connection.applied_revision:
            await self._broker.calls.preparation.release(process, served.instance)


def pause(attempts: int, why: Failure) -> timedelta:
    """Ever longer, never quite the same, and never less than what was asked for."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts, 16))
    asked = why.retry_after.ToTimedelta().total_seconds() if why.HasField("retry_after") else 0.0
    return timedelta(seconds=max(min(asked, 3600.0), random.uniform(longest / 2, longest)))  # noqa: S311
