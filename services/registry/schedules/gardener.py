"""Schedules come and go with what connections choose, at the revision that serves. Any replica may see to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

import structlog

from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.unit_of_work import Store
from services.registry.connections.connection import Connection, State
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.schedules import planting
from services.registry.schedules.wishes import digest, wishes

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0


class Gardener:
    """`async with` it."""

    def __init__(
        self, worker: Store, picture: Picture, host: Host, planted: Callable[[], None] = lambda: None
    ) -> None:
        self._worker, self._picture, self._host, self._planted = worker, picture, host, planted
        self._known: dict[str, str] = {}
        """What each connection's schedules were brought in line with, as far as this replica saw to it."""
        self._seen: object = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="keep schedules as connections choose")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
            except Problem as away:
                log.debug("schedules stay as they are", why=str(away))
            except Exception:  # a task's border: what is polled goes on
                log.exception("schedules could not be brought in line with their connections")
            await woken(self._wanted, LOOK_SECONDS)

    async def _look(self) -> None:
        snapshot = self._picture.snapshot
        serving = {plugin: self._host.serving(plugin) for plugin in self._host.catalogue.content.names()}
        seen = (snapshot.generation, serving)
        if seen == self._seen or not snapshot.known:
            return
        if self._seen is None:
            async with self._worker.across_tenants() as work:
                self._known = dict.fromkeys(await planting.planned(work), "")
        for connection in snapshot.content.values():
            await self._tend(connection)
        self._known = {name: known for name, known in self._known.items() if name in snapshot.content}
        self._seen = seen

    async def _tend(self, connection: Connection) -> None:
        planted = connection.name in self._known
        if not connection.applied_revision or not (connection.wanted.streams or planted):
            return
        manifest = self._host.manifest(connection.plugin, connection.wanted.version_range)
        if manifest is None or connection.state is State.DELETING:
            return
        wanted = wishes(connection.wanted, manifest)
        mark = digest(connection.applied_revision, wanted)
        if self._known.get(connection.name) == mark:
            return
        async with self._worker.unit_of_work(tenants=[connection.tenant]) as work:
            revision = connection.applied_revision
            if await planting.plant(
                work, connection.tenant, connection.id, wanted, revision=revision, digest=mark
            ):
                log.info("a connection is polled", connection=connection.name, streams=len(wanted))
                self._planted()
        self._known[connection.name] = mark
