"""What a new version of a plugin is tried with before it serves: every connection that would move to it.

Settings of an older version are translated for the trial, and from the shift on the new version is given them so,
until the revision that holds them is stored (`migrating.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from foundation.errors import Code, Problem
from services.registry.apps.app import with_defaults
from services.registry.broker import failures
from services.registry.broker.broker import Broker
from services.registry.broker.serving import Served
from services.registry.catalogue.versions import Range, Version
from services.registry.connections.connection import State
from services.registry.connections.drafts import Drafts
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure


class Moving:
    def __init__(self, picture: Picture, broker: Broker, host: Host, drafts: Drafts) -> None:
        self._picture, self._broker, self._host, self._drafts = picture, broker, host, drafts

    def of_plugin(self, plugin: str, version: Version) -> Sequence[Served]:
        return [
            connection.served(connection.applied_revision)
            for connection in self._picture.snapshot.content.values()
            if connection.plugin == plugin
            and connection.applied_revision
            and connection.state is not State.DELETING
            and Range.parse(connection.wanted.version_range).admits(version)
        ]

    async def prepare(self, process: PluginProcess, instance: Served) -> Failure | None:
        """It has to take the instance, and to work with it if the version before does."""
        failure = await self._translate(process, instance) or await self._broker.prepare(process, instance)
        if failure is not None:
            return failure
        failure = await self._broker.unhealthy(process, instance)
        if failure is None:
            return None
        before = self._host.route(instance)
        if before is None or await self._broker.unhealthy(before, instance) is not None:
            return None  # its provider is in trouble, or its credential: that is nothing new
        return failure

    async def _translate(self, process: PluginProcess, instance: Served) -> Failure | None:
        """Why its settings fit this version neither as they are nor translated."""
        connection = self._picture.snapshot.content.get(instance.connection)
        if connection is None:
            return None
        try:
            draft = await self._drafts.translate(connection, process)
        except Problem as problem:
            why = f"{connection.name}: {problem.sentence}"
            if problem.code is Code.INVALID_ARGUMENT:
                return failures.invalid_config("SETTINGS_NOT_MIGRATED", why)
            return failures.transient("NOT_ASKED", why)
        if draft is not None:
            version = process.manifest.version
            settings = with_defaults(connection.app_settings, draft.wanted.settings)
            self._broker.calls.preparation.translate(instance, version, settings, draft.settings_version)
        return None
