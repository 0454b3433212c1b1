"""What is true of a connection besides what is stored of it: on which version it runs, and whether it works."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from services.registry.broker import failures
from services.registry.connections.connection import Connection, State
from services.registry.health.rules import Health
from services.registry.health.status import StatusBook
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.manifest_pb2 import Manifest


class Seen:
    def __init__(self, book: StatusBook, manifest: Callable[[str, str], Manifest | None]) -> None:
        self._book, self._manifest = book, manifest

    def version(self, connection: Connection) -> str:
        """That of the plugin that its calls go to; as it was stored, where that is not known here."""
        if not connection.applied_revision:
            return connection.resolved_version
        found = self._manifest(connection.plugin, connection.wanted.version_range)
        return connection.resolved_version if found is None else found.version

    def failing(self, connection: Connection) -> tuple[Failure, datetime] | None:
        """Why it does not work although it should, and since when."""
        status = self._book.statuses.get(connection.name)
        if connection.state is not State.ACTIVE or status is None or status.health is not Health.DOWN:
            return None
        return failures.transient("DOWN", status.explanation), status.since
