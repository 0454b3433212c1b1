"""The end of a connection, step by step: no calls, what others keep for it, grants, instances, rows.

Each step may be taken again. The row says that it is being ended until nothing else is left. So whoever takes over from a dead one begins anew,
and ends what is left. Afterwards it is as if the connection had never been, and its id may be used again; its
events stay. Grants that a connection no longer wants end here too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.registry.broker import failures
from services.registry.connections import claims, store
from services.registry.connections.applying import pause
from services.registry.connections.connection import Connection
from services.registry.connections.grants import Grants
from services.registry.connections.picture import Picture
from services.registry.connections.releasing import Releaser

log = structlog.get_logger(__name__)

Removal = Callable[[Connection], Awaitable[None]]
"""What a room does when a connection ends: may be done twice, and raises a Problem to be called again later."""

LOOK_SECONDS = 1.0
TIDY_SECONDS = 30.0
SETTLED_SECONDS = 60.0
"""A grant that is younger may belong to a change that is not written yet."""
AT_ONCE = 32


class Ender:
    """`async with` it. `removals` are called in their order, before the grants end: they may still call the provider."""

    def __init__(
        self,
        *,
        worker: Store,
        grants: Grants,
        releaser: Releaser,
        picture: Picture,
        clock: Clock,
        removals: Sequence[Removal] = (),
    ) -> None:
        self._worker, self._grants, self._releaser = worker, grants, releaser
        self._picture, self._clock, self._removals = picture, clock, removals
        self._owner = secrets.token_hex(8)
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def notice(self) -> None:
        """Something is to end."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._keep(), name="end connections"),
            asyncio.create_task(self._keep_tidy(), name="end grants that nobody wants"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._tasks, *self._under_way.values()]:
            await end(task)
        try:
            async with self._worker.across_tenants() as work:
                await claims.let_go(work, self._owner)
        except StoreError as away:
            log.info("what was being ended waits until its claim is over", why=str(away))

    async def _keep(self) -> None:
        while True:
            try:
                await self._pass()
            except Problem as away:
                log.debug("no connection was ended", why=str(away))
            except Exception:  # a task's border: what is to end stays, and so must this
                log.exception("what is to end could not be read")
            await woken(self._wanted, LOOK_SECONDS)

    async def _pass(self) -> None:
        async with self._worker.across_tenants() as work:
            if self._under_way:
                await claims.extend(work, self._owner, [*self._under_way])
            room = AT_ONCE - len(self._under_way)
            ending = await claims.take_to_end(work, self._owner, room) if room > 0 else []
        for connection in ending:
            if connection.name not in self._under_way:
                task = asyncio.create_task(self._try(connection), name=f"end {connection.name}")
                self._under_way[connection.name] = task
                task.add_done_callback(partial(self._done, connection.name))

    def _done(self, name: str, _: asyncio.Task[None]) -> None:
        self._under_way.pop(name, None)
        self._wanted.set()

    async def _try(self, connection: Connection) -> None:
        try:
            try:
                await self._end(connection)
            except Problem as problem:
                why = failures.transient("NOT_ENDED_YET", problem.sentence)
                async with self._worker.across_tenants() as work:
                    await claims.put_off(work, connection, self._owner, why, pause(connection.attempts, why))
        except Problem as away:
            log.debug("a connection was not ended", why=str(away))
        except Exception:  # a task's border: another connection may end although this one does not
            log.exception("a connection could not be ended", connection=connection.name)

    async def _end(self, connection: Connection) -> None:
        for remove in self._removals:
            await remove(connection)
        await self._grants.end(connection.name)
        await self._picture.look()
        await self._releaser.release(connection.name)
        async with self._worker.across_tenants() as work:
            await claims.erase(work, connection, self._owner)
        self._picture.notice()
        log.info("a connection has ended", connection=connection.name)

    async def _keep_tidy(self) -> None:
        while True:
            await self._clock.sleep(TIDY_SECONDS)
            try:
                await self._tidy()
            except Problem as away:
                log.debug("grants were not tidied", why=str(away))
            except Exception:  # a task's border
                log.exception("grants could not be tidied")

    async def _tidy(self) -> None:
        async with self._worker.across_tenants() as work:
            await claims.sweep_requests(work)
            untidy = await claims.take_untidy(work, AT_ONCE)
        for row in untidy:
            async with self._worker.across_tenants() as work:
                newest = await store.get(work, row.tenant, row.id)
                serving = await store.serving(work, row.tenant, row.id)
            if newest is None or serving is None:
                continue
            kept = [*newest.wanted.credentials, *serving.wanted.credentials]
            await self._grants.end(newest.name, kept, settled=SETTLED_SECONDS)
            async with self._worker.across_tenants() as work:
                await claims.tidy(work, row)
