"""Everything the data plane must know, held in memory: every connection, and the endpoints that belong to them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from foundation.store.watched import Snapshot, Watched
from services.registry.apps import store as apps
from services.registry.apps.app import App
from services.registry.broker.serving import Served
from services.registry.connections import store
from services.registry.connections.connection import Connection

LOOK_SECONDS = 1.0
REACH_SECONDS = 5.0

Connections = Mapping[str, Connection]


class Picture(Watched[Connections]):
    def __init__(self, worker: Store) -> None:
        self._worker = worker
        self.apps: Mapping[str, App] = {}
        """By name, as they were when the connections were read."""
        super().__init__("connections", self._everything, {}, look_seconds=LOOK_SECONDS)

    async def find(self, connection: str) -> Served | None:
        found = self.snapshot.content.get(connection)
        if found is None:
            # Perhaps made a moment ago by another replica. One row tells whether there is anything new.
            await self.look()
            found = self.snapshot.content.get(connection)
        return None if found is None else found.served(found.applied_revision)

    async def reach(self, generation: int) -> None:
        """Wait until that is seen here; many may wait for one look."""
        self.notice()
        with suppress(TimeoutError):
            async with asyncio.timeout(REACH_SECONDS):
                async for snapshot in self.watch():
                    if snapshot.generation >= generation:
                        return

    async def check(self) -> None:
        """For readiness: without a picture every delivery would seem to be nobody's."""
        if not self.snapshot.known:
            why = "the connections are not read yet"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the picture", why=why)

    async def _everything(self, known: int) -> Snapshot[Connections] | None:
        async with self._worker.across_tenants() as work:
            generation = await store.generation(work)
            if generation == known:
                return None
            connections = {found.name: found for found in await store.everything(work)}
            self.apps = {app.name: app for app in await apps.everything(work)}
            return Snapshot(generation, connections)
