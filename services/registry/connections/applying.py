"""Brings what is wanted into effect: each pending revision is given to its plugin, which takes or refuses it.

What fails because something is away is tried again, by whichever replica comes first; applying twice changes
nothing. What the plugin refuses stays FAILED until somebody writes another revision.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.clock.tasks import woken
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.broker.broker import Broker
from services.registry.connections import store
from services.registry.connections.connection import Application, Connection
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from tieline.common.v1.failure_pb2 import Failure, FailureKind

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
AT_ONCE = 1000

# Anything else a plugin says of settings is its last word on them.
_LATER = {
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_RATE_LIMITED,
    FailureKind.FAILURE_KIND_INTERNAL,
}


class Applier:
    """`async with` it: an owned task applies what is pending."""

    def __init__(self, worker: Store, host: Host, broker: Broker, picture: Picture, clock: Clock) -> None:
        self._worker, self._host, self._broker = worker, host, broker
        self._picture, self._clock = picture, clock
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def notice(self) -> None:
        """Something is pending."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="apply connections")
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._under_way.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            try:
                await self._pass()
            except (Problem, StoreError) as away:
                log.debug("nothing was applied", why=str(away))
            except Exception:  # a task's border: what is pending stays, and so must this
                log.exception("what is pending could not be read")
            await woken(self._wanted, LOOK_SECONDS)

    async def _pass(self) -> None:
        async with self._worker.across_tenants() as work:
            pending = await store.pending(work, AT_ONCE)
        for connection in pending:
            # Each by itself: one whose plugin is away waits for it, and nobody waits for that one.
            if connection.name not in self._under_way:
                task = asyncio.create_task(self._try(connection), name=f"apply {connection.name}")
                self._under_way[connection.name] = task
                task.add_done_callback(partial(self._done, connection.name))

    def _done(self, name: str, _: asyncio.Task[None]) -> None:
        del self._under_way[name]

    async def _try(self, connection: Connection) -> None:
        try:
            await self._apply(connection)
        except (Problem, StoreError) as away:
            log.debug("a connection was not applied", why=str(away))
        except Exception:  # a task's border: one strange connection must not end the others' service
            log.exception("a connection could not be applied", connection=connection.name)

    async def _apply(self, connection: Connection) -> None:
        served = connection.served(connection.revision)
        failure = await self._broker.initialize(served)
        process = self._host.route(served)
        async with self._worker.across_tenants() as work:
            if failure is None and process is not None:
                await store.applied(work, connection, process.manifest.version, self._clock.now())
            elif failure is not None:
                await self._postpone_or_fail(work, connection, failure)
        self._picture.notice()

    async def _postpone_or_fail(self, work: AsyncConnection, connection: Connection, why: Failure) -> None:
        application = Application.PENDING if why.kind in _LATER else Application.FAILED
        log.info("a revision is not applied", connection=connection.name, application=application.value)
        await store.not_applied(work, connection, application, why, self._clock.now())
