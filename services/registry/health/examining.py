"""Looking at instances: each now and then, and one that does not work again and again with growing pauses.

When a connection is due stands in the database, so that replicas share the work and a dead one's is done by
another. A connection that the platform suspended for a permission is asked after in the same way, and goes on
by itself when its provider says that nothing is missing any more.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.notices import outbox
from foundation.store.unit_of_work import Store
from services.registry.broker.broker import Broker
from services.registry.broker.examining import NOBODY_ASKED
from services.registry.broker.failures import CallFailed
from services.registry.broker.preparing import Checkup
from services.registry.broker.serving import Served
from services.registry.connections import store as connections
from services.registry.connections.connection import Connection, State
from services.registry.connections.picture import Picture
from services.registry.health import store, telling
from services.registry.health.ear import Ear
from services.registry.health.rules import Health
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure, FailureKind

log = structlog.get_logger(__name__)

ROUTINE_SECONDS = 300.0
"""Between looks at what works."""
BASE_SECONDS = 5.0
LONGEST_SECONDS = 300.0
CLAIM_SECONDS = 60.0
"""A look takes less; one that was claimed by somebody who died is done by another after this."""
LOOK_SECONDS = 1.0
AT_ONCE = 8
DENIED = "PERMISSION_DENIED"
"""The reason that marks a suspension as ours."""


def pause(misses: int) -> float:
    """Seconds to the next look after so many failures in a row: full jitter, so that a thousand do not come at once."""
    longest = min(LONGEST_SECONDS, BASE_SECONDS * 2 ** min(misses, 16))
    return random.uniform(BASE_SECONDS / 2, longest)  # noqa: S311 - it spreads load, it hides nothing


def routine(valid_for: float) -> float:
    """Seconds to the next look at what works."""
    return max(ROUTINE_SECONDS, valid_for) * random.uniform(0.8, 1.2)  # noqa: S311


class Examiner:
    """`async with` it."""

    def __init__(
        self, worker: Store, picture: Picture, host: Host, broker: Broker, *, ear: Ear, clock: Clock
    ) -> None:
        self._worker, self._picture, self._host = worker, picture, host
        self._broker, self._ear, self._clock = broker, ear, clock
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._keep(), name="look at connections")]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await end(task)

    async def _keep(self) -> None:
        while True:
            try:
                await self._suspend()
                busy = await self._round()
            except Problem as away:
                log.debug("connections are looked at later", why=str(away))
                busy = False
            except Exception:  # a task's border
                log.exception("connections are looked at later")
                busy = False
            if not busy:
                await self._clock.sleep(LOOK_SECONDS)

    async def _round(self) -> bool:
        now = self._clock.now()
        until = now + timedelta(seconds=CLAIM_SECONDS)
        async with self._worker.across_tenants() as work:
            due = await store.claim(work, now, until, AT_ONCE)
        await asyncio.gather(*(self._look(name, misses) for name, misses in due.items()))
        return len(due) == AT_ONCE

    async def _look(self, name: str, misses: int) -> None:
        connection = self._picture.snapshot.content.get(name)
        if connection is None or not _looked_at(connection):
            await self._later(name, BASE_SECONDS, misses)
            return
        served = connection.served(connection.applied_revision)
        process = self._host.route(served)
        if process is None:
            await self._later(name, BASE_SECONDS, misses)
            return
        try:
            checkup = await self._broker.examine(process, served)
            denied = await self._still_denied(process, served) if _is_ours(connection) else None
        except CallFailed as failed:
            # Nobody could be asked, which is the process's trouble and shown as such.
            log.debug("a connection could not be looked at", connection=name, why=failed.failure.message)
            await self._later(name, BASE_SECONDS, misses)
            return
        await self._found(connection, checkup, denied, misses)

    async def _found(
        self, connection: Connection, checkup: Checkup, denied: Failure | None, misses: int
    ) -> None:
        now = self._clock.now()
        failure = denied or checkup.failure
        health = Health.OK if failure is None else Health.DEGRADED
        if denied is not None or checkup.dead is not None:
            health = Health.DOWN
        resumes = _is_ours(connection) and health is not Health.DOWN
        # After a suspension patience is kept until it was healthy for a while: what is denied again waits longer.
        well = health is not Health.DOWN and not resumes
        misses = 0 if well else misses + 1
        seconds = routine(checkup.valid_for) if well else pause(misses)
        again = now + timedelta(seconds=seconds)
        async with self._worker.across_tenants() as work:
            await store.checked(work, connection.name, health, failure, now=now, again=again, misses=misses)
            if resumes and await connections.resumed(work, connection, now):
                said = {"plugin": f"plugins/{connection.plugin}"}
                since = connection.state_time
                await outbox.add(
                    work,
                    telling.over(
                        telling.SUSPENDED, connection.tenant, connection.name, since=since, now=now, said=said
                    ),
                )
        if resumes:
            log.info("a connection goes on", connection=connection.name)
            self._picture.notice()

    async def _later(self, name: str, seconds: float, misses: int) -> None:
        again = self._clock.now() + timedelta(seconds=seconds)
        async with self._worker.across_tenants() as work:
            await store.later(work, name, again, misses)

    async def _still_denied(self, process: PluginProcess, served: Served) -> Failure | None:
        """Why it cannot work, by its provider's own account of it; CallFailed where nobody could be asked."""
        examination = await self._broker.examining.examine(process, served)
        for finding in examination.findings:
            if finding.subject == NOBODY_ASKED and finding.failure is not None:
                raise CallFailed(finding.failure)
        return examination.failure

    async def _suspend(self) -> None:
        """What was refused for a permission rests until its owner has done something about it."""
        for name, failure in list(self._ear.denied.items()):
            connection = self._picture.snapshot.content.get(name)
            if connection is not None and connection.state is State.ACTIVE:
                await self._suspend_one(connection, failure)
            self._ear.denied.pop(name, None)

    async def _suspend_one(self, connection: Connection, failure: Failure) -> None:
        now = self._clock.now()
        why = Failure(
            kind=FailureKind.FAILURE_KIND_PERMISSION_DENIED,
            reason=DENIED,
            message=f"its credential may not do what was asked: {failure.message or failure.reason}"[:1024],
        )
        async with self._worker.across_tenants() as work:
            if not await connections.suspended(work, connection, why, now):
                return
            misses = await store.missed(work, connection.name)
            await store.later(work, connection.name, now + timedelta(seconds=pause(misses)), misses)
            said = {"plugin": f"plugins/{connection.plugin}"}
            await outbox.add(
                work,
                telling.trouble(
                    telling.SUSPENDED,
                    connection.tenant,
                    connection.name,
                    why.message,
                    since=now,
                    now=now,
                    said=said,
                ),
            )
        log.info("a connection is suspended", connection=connection.name, why=why.message)
        self._picture.notice()


def _looked_at(connection: Connection) -> bool:
    return bool(connection.applied_revision) and (connection.state is State.ACTIVE or _is_ours(connection))


def _is_ours(connection: Connection) -> bool:
    """Suspended for a permission, not for its credential, which the vault watches."""
    failure = connection.failure
    return connection.state is State.SUSPENDED and failure is not None and failure.reason == DENIED
