"""Asks again whether a connection's credentials control the accounts that it receives for: nobody keeps them for ever.

A connection is asked about an hour after its revision was tried, and then every hour, by whichever replica takes it.
What was not answered leaves everything as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.broker.broker import Broker
from services.registry.connections import accounts, claims, store
from services.registry.connections.connection import Connection
from services.registry.connections.picture import Picture
from services.registry.host.host import Host

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
AT_ONCE = 8


class Prover:
    """`async with` it."""

    def __init__(self, worker: Store, host: Host, broker: Broker, picture: Picture, clock: Clock) -> None:
        self._worker, self._host, self._broker = worker, host, broker
        self._picture, self._clock = picture, clock
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="ask whose accounts are whose")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def found(self, connection: Connection, proven: Sequence[str]) -> None:
        """These its credentials control, as the provider said just now; it serves at its newest revision."""
        if not connection.wanted.app:
            return
        async with self._worker.across_tenants() as work:
            turned = await accounts.hold(work, connection) and await accounts.prove(work, connection, proven)
            if turned:
                await store.changed(work)
        if turned:
            log.info("a connection receives for other accounts now", connection=connection.name)
            self._picture.notice()

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                async with self._worker.across_tenants() as work:
                    due = await claims.take_to_prove(work, AT_ONCE)
                await asyncio.gather(*map(self._ask, due))
            except (Problem, StoreError) as away:
                log.debug("accounts stay as they are", why=str(away))
            except Exception:  # a task's border
                log.exception("accounts stay as they are")

    async def _ask(self, name: str) -> None:
        connection = self._picture.snapshot.content.get(name)
        if connection is None:
            return
        served = connection.served(connection.applied_revision)
        process = self._host.route(served)
        if process is None:
            return
        examination = await self._broker.examining.examine(process, served)
        if examination.failure is None and connection.revision == connection.applied_revision:
            await self.found(connection, examination.accounts)
