"""What somebody wants, made fit to be kept: held against the manifest, shown to the plugin, translated where it is old.

Settings belong to the version of the plugin that they were written for. An older document is shown to the version
that it is to run on, and what that makes of it is a revision of its own, whose author says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foundation.errors import Code, Problem
from services.registry.apps.app import FindApp, no_apps
from services.registry.broker.broker import Broker
from services.registry.catalogue.versions import Version
from services.registry.connections.connection import Connection
from services.registry.connections.wanted import canonical, check, settings_faults
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import connections_pb2 as pb

OURSELVES = "services/registry"


@dataclass(frozen=True, slots=True)
class Draft:
    """A revision to be."""

    wanted: pb.Connection
    settings_version: str
    author: str
    rollback_of: int = 0
    migrated: bool = False
    """The platform's own words for the draft before it."""


@dataclass(frozen=True, slots=True)
class Drafted:
    manifest: Manifest
    drafts: Sequence[Draft]

    @property
    def last(self) -> Draft:
        return self.drafts[-1]


class Drafts:
    def __init__(self, host: Host, broker: Broker, find_app: FindApp = no_apps) -> None:
        self._host, self._broker, self._find_app = host, broker, find_app

    def manifest(self, wanted: pb.Connection) -> Manifest:
        """That of the version it would run on; the problem that says what is wrong with plugin or range."""
        plugin = wanted.plugin.removeprefix("plugins/")
        known = wanted.plugin.startswith("plugins/") and self._host.catalogue.content.versions(plugin)
        if not known:
            why = f"there is no plugin {wanted.plugin[:100]!r}; `tieline plugin list` shows what there is"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.plugin", why=why)
        manifest = self._host.manifest(plugin, wanted.version_range)
        if manifest is None:
            there = ", ".join(str(one.version) for one in known)
            why = f"no version that may be chosen fits; there is {there}"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.version_range", why=why)
        return manifest

    async def of(self, connection: Connection, draft: Draft) -> Drafted:
        """The draft, and its translation where it has to have one; the problem where it cannot be."""
        manifest = self.manifest(draft.wanted)
        app = await self._find_app(draft.wanted.app) if draft.wanted.app else None
        connection = replace(connection, app_settings=b"" if app is None else app.content.settings)
        drafts = [draft]
        if is_older(draft.settings_version, manifest.version):
            drafts += await self._translated(connection, draft, manifest)
        check(drafts[-1].wanted, manifest, connection.tenant, app)
        if len(drafts) == 1:
            await self._ask_plugin(connection, draft)
        return Drafted(manifest, drafts)

    async def _translated(self, connection: Connection, draft: Draft, manifest: Manifest) -> list[Draft]:
        shown = replace(connection, wanted=draft.wanted, settings_version=draft.settings_version)
        opinion = await self._broker.opinion(shown.served(shown.revision + 1))
        if opinion.failure is not None and opinion.failure.kind == FailureKind.FAILURE_KIND_INVALID_CONFIG:
            raise _refused(draft.settings_version, manifest.version, opinion.failure.message)
        if opinion.failure is not None or not opinion.migrated:
            return []  # as they are, then, if they fit
        return [translation(draft, opinion.migrated, manifest)]

    async def _ask_plugin(self, connection: Connection, draft: Draft) -> None:
        """What the plugin says of the settings, if it can be asked now; else it is asked when it is back."""
        shown = replace(connection, wanted=draft.wanted, settings_version=draft.settings_version)
        failure = await self._broker.initialize(shown.served(shown.revision + 1), validate_only=True)
        if failure is not None and failure.kind == FailureKind.FAILURE_KIND_INVALID_CONFIG:
            raise Problem(Code.INVALID_ARGUMENT, field="connection.settings", why=failure.message)

    async def translate(self, connection: Connection, process: PluginProcess) -> Draft | None:
        """The connection's settings as this process would write them; None where they may stay as they are.

        Raises the problem that says which settings fit neither as they are nor translated.
        """
        draft = Draft(connection.wanted, connection.settings_version, OURSELVES)
        if not is_older(draft.settings_version, process.manifest.version):
            return None
        opinion = await self._broker.opinion(connection.served(connection.applied_revision), process)
        if opinion.failure is not None:
            if opinion.failure.kind != FailureKind.FAILURE_KIND_INVALID_CONFIG:
                raise Problem(
                    Code.DEPENDENCY_UNAVAILABLE, dependency=process.name, why=opinion.failure.message
                )
            raise _refused(draft.settings_version, process.manifest.version, opinion.failure.message)
        if opinion.migrated:
            return translation(draft, opinion.migrated, process.manifest)
        if faults := settings_faults(connection.settings, process.manifest):
            raise _refused(draft.settings_version, process.manifest.version, "; ".join(faults))
        return None


def translation(draft: Draft, migrated: bytes, manifest: Manifest) -> Draft:
    """A draft in the words of another version; the problem where the plugin's own do not fit its schema."""
    wanted = pb.Connection()
    wanted.CopyFrom(draft.wanted)
    try:
        wanted.settings = canonical(migrated)
    except Problem as problem:
        raise _refused(draft.settings_version, manifest.version, problem.data["why"]) from None
    if faults := settings_faults(wanted.settings, manifest):
        raise _refused(draft.settings_version, manifest.version, "; ".join(faults))
    author = f"{OURSELVES}: settings migrated from {draft.settings_version} to {manifest.version}"
    return Draft(wanted, manifest.version, author, migrated=True)


def is_older(one: str, other: str) -> bool:
    try:
        return Version.parse(one) < Version.parse(other)
    except ValueError:
        return False


def _refused(origin: str, target: str, why: str) -> Problem:
    why = f"written for version {origin}, they do not fit {target}: {why}"
    return Problem(Code.INVALID_ARGUMENT, field="connection.settings", why=why)
