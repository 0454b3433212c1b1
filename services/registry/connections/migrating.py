"""Stores what an upgrade made of settings: a revision of its own, whose author says so, never in place.

The version that serves a connection may be newer than its settings: after an upgrade, after a restart in the middle
of one, after a version was taken away. Its plugin is asked once, and what it would write is stored. Where an
upgrade is taken back, so are the settings that it brought.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.unit_of_work import Store
from services.registry.broker.broker import Broker
from services.registry.connections import claims, store
from services.registry.connections.applying import Applier
from services.registry.connections.connection import Connection, Revision, State
from services.registry.connections.drafts import OURSELVES, Drafts, is_older
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.recording import Change, Recorder

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
KEPT = 10_000

Question = tuple[str, int, str]
"""A connection, its revision, and a version."""


class Migrator:
    """`async with` it."""

    def __init__(
        self,
        *,
        worker: Store,
        host: Host,
        broker: Broker,
        drafts: Drafts,
        picture: Picture,
        applier: Applier,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._worker, self._host, self._broker, self._drafts = worker, host, broker, drafts
        self._picture, self._applier = picture, applier
        self._recorder, self._clock = recorder, clock
        self._answered: OrderedDict[Question, None] = OrderedDict()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="migrate settings")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            await woken(self._wanted, LOOK_SECONDS)
            for connection in list(self._picture.snapshot.content.values()):
                try:
                    await self._look_at(connection)
                except Problem as away:
                    log.info("settings stay as they are", connection=connection.name, why=str(away))
                except Exception:  # a task's border: others wait for theirs
                    log.exception("settings could not be migrated", connection=connection.name)

    async def _look_at(self, connection: Connection) -> None:
        """Memory answers it, but for connections whose version has changed."""
        version = self._version(connection)
        if version in ("", connection.settings_version) or connection.state is State.DELETING:
            return
        if connection.revision != connection.applied_revision:
            return  # somebody has changed it: that comes first
        question = (connection.name, connection.applied_revision, version)
        if question in self._answered:
            return
        if is_older(connection.settings_version, version):
            new = await self._forward(connection)
        else:
            new = await self._back(connection, version)
        if new is not None:
            await self._keep_revision(connection, new)
        self._answered[question] = None
        while len(self._answered) > KEPT:
            self._answered.popitem(last=False)

    def _version(self, connection: Connection) -> str:
        """That its calls go to now; empty: none, or it does not serve yet."""
        if not connection.applied_revision:
            return ""
        manifest = self._host.manifest(connection.plugin, connection.wanted.version_range)
        return "" if manifest is None else manifest.version

    async def _forward(self, connection: Connection) -> Revision | None:
        process = self._host.route(connection.served(connection.applied_revision))
        draft = None if process is None else await self._drafts.translate(connection, process)
        if draft is None:
            return None
        return Revision(
            number=connection.applied_revision + 1,
            wanted=draft.wanted,
            settings_version=draft.settings_version,
            author=draft.author,
            create_time=self._clock.now(),
            migrated_from=connection.applied_revision,
        )

    async def _back(self, connection: Connection, version: str) -> Revision | None:
        """What it was migrated from, where that is not newer than the version that serves again."""
        async with self._worker.unit_of_work(tenants=[connection.tenant]) as work:
            serving = await store.revision(
                work, connection.tenant, connection.id, connection.applied_revision
            )
            if serving is None or not serving.migrated_from:
                return None
            old = await store.revision(work, connection.tenant, connection.id, serving.migrated_from)
        if old is None or is_older(version, old.settings_version):
            return None
        return Revision(
            number=connection.applied_revision + 1,
            wanted=old.wanted,
            settings_version=old.settings_version,
            author=f"{OURSELVES}: settings of revision {old.number} again, because {version} serves again",
            create_time=self._clock.now(),
            rollback_of=old.number,
        )

    async def _keep_revision(self, connection: Connection, new: Revision) -> None:
        details = {"revision": str(new.number), "settings_version": new.settings_version}
        change = Change(
            action="connection.migrate", resource=connection.name, fields=["settings"], details=details
        )
        async with (
            self._recorder.making(change),
            self._worker.unit_of_work(tenants=[connection.tenant]) as work,
        ):
            kept = await claims.migrated(work, connection, new)
        if kept and new.migrated_from:
            # If the upgrade is taken back, the version before is given what it knows until that is stored again.
            after = connection.served(new.number)
            for published in self._host.versions(connection.plugin):
                if is_older(version := str(published.version), new.settings_version):
                    self._broker.calls.preparation.translate(
                        after, version, connection.settings, connection.settings_version
                    )
        log.info(
            "settings were migrated", connection=connection.name, version=new.settings_version, kept=kept
        )
        self._applier.notice()
        self._picture.notice()
