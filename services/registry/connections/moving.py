"""What a new version of a plugin is tried with before it serves: every connection that would move to it."""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.broker.broker import Broker
from services.registry.broker.serving import Served
from services.registry.catalogue.versions import Range, Version
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure


class Moving:
    def __init__(self, picture: Picture, broker: Broker, host: Host) -> None:
        self._picture, self._broker, self._host = picture, broker, host

    def of_plugin(self, plugin: str, version: Version) -> Sequence[Served]:
        return [
            connection.served(connection.applied_revision)
            for connection in self._picture.snapshot.content.values()
            if connection.plugin == plugin
            and connection.applied_revision
            and Range.parse(connection.wanted.version_range).admits(version)
        ]

    async def prepare(self, process: PluginProcess, instance: Served) -> Failure | None:
        """It has to take the instance, and to work with it if the version before does."""
        failure = await self._broker.prepare(process, instance)
        if failure is not None:
            return failure
        failure = await self._broker.unhealthy(process, instance)
        if failure is None:
            return None
        before = self._host.route(instance)
        if before is None or await self._broker.unhealthy(before, instance) is not None:
            return None  # its provider is in trouble, or its credential: that is nothing new
        return failure
