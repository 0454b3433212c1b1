"""What is remembered of plugins beyond what lies on disk: since when, what people decided, which version serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from sqlalchemy import text

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.registry.catalogue.versions import Version
from tieline.plugin.v1.manifest_pb2 import Manifest

Key = tuple[str, Version]
"""A plugin's name and version."""

_SEEN = text("""
    insert into plugin_versions (plugin, version, create_time)
    select plugin, version, :now from unnest(cast(:plugins as text[]), cast(:versions as text[])) as seen (plugin, version)
    on conflict do nothing
""")
_READ = text("select plugin, version, status, revision, create_time from plugin_versions")
_OVERRIDE = text("""
    update plugin_versions set status = :status, revision = revision + 1
    where plugin = :plugin and version = :version and revision = :revision
    returning status, revision, create_time
""")
_TRACKS = text("select plugin, version, shifts from plugin_tracks")
_SERVE = text("""
    insert into plugin_tracks (plugin, version, update_time, shifts) values (:plugin, :version, :now, :shifts)
    on conflict (plugin) do update set version = excluded.version, update_time = excluded.update_time,
        shifts = plugin_tracks.shifts + excluded.shifts
""")


@dataclass(frozen=True, slots=True)
class Track:
    """The version of a plugin that serves, and how often somebody has wanted another."""

    version: Version
    shifts: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    create_time: datetime
    status: Manifest.Status.ValueType = Manifest.STATUS_UNSPECIFIED
    """What somebody decided; unspecified: what the manifest says."""
    revision: int = 1

    @property
    def etag(self) -> str:
        return str(self.revision)


class Ledger(Protocol):
    async def seen(self, keys: Iterable[Key]) -> Mapping[Key, Entry]:
        """Remember these from now on, and tell what is known of any."""

    async def override(self, key: Key, status: Manifest.Status.ValueType, etag: str) -> Entry:
        """Decide about a status; the problem CONFLICT where somebody else did meanwhile."""

    async def tracks(self) -> Mapping[str, Track]:
        """By plugin."""

    async def serve(self, plugin: str, version: Version, *, wanted: bool = False) -> None:
        """`wanted`: by somebody, so that every replica follows; else this one had no other choice."""


class StoredLedger:
    def __init__(self, worker: Store, clock: Clock) -> None:
        self._worker, self._clock = worker, clock

    async def seen(self, keys: Iterable[Key]) -> Mapping[Key, Entry]:
        new = list(keys)
        async with self._worker.across_tenants() as work:
            if new:
                names, versions = [name for name, _ in new], [str(version) for _, version in new]
                await work.execute(_SEEN, {"plugins": names, "versions": versions, "now": self._clock.now()})
            rows = await work.execute(_READ)
        return {
            (plugin, Version.parse(version)): Entry(create_time, status, revision)
            for plugin, version, status, revision, create_time in rows
        }

    async def override(self, key: Key, status: Manifest.Status.ValueType, etag: str) -> Entry:
        row = {"plugin": key[0], "version": str(key[1]), "status": status, "revision": _number(etag)}
        async with self._worker.across_tenants() as work:
            found = (await work.execute(_OVERRIDE, row)).one_or_none()
        if found is None:
            raise Problem(Code.CONFLICT, why=f"{key[0]} {key[1]} is not as it was read")
        return Entry(found.create_time, found.status, found.revision)

    async def tracks(self) -> Mapping[str, Track]:
        async with self._worker.across_tenants() as work:
            rows = await work.execute(_TRACKS)
        return {plugin: Track(Version.parse(version), shifts) for plugin, version, shifts in rows}

    async def serve(self, plugin: str, version: Version, *, wanted: bool = False) -> None:
        row = {"plugin": plugin, "version": str(version), "now": self._clock.now(), "shifts": int(wanted)}
        async with self._worker.across_tenants() as work:
            await work.execute(_SERVE, row)


class HeldLedger:
    """Forgets with its process: for a host that serves nobody for long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[Key, Entry] = {}
        self._tracks: dict[str, Track] = {}

    async def seen(self, keys: Iterable[Key]) -> Mapping[Key, Entry]:
        for key in keys:
            self._entries.setdefault(key, Entry(self._clock.now()))
        return dict(self._entries)

    async def override(self, key: Key, status: Manifest.Status.ValueType, etag: str) -> Entry:
        entry = self._entries[key]
        if entry.etag != etag:
            raise Problem(Code.CONFLICT, why=f"{key[0]} {key[1]} is not as it was read")
        self._entries[key] = replace(entry, status=status, revision=entry.revision + 1)
        return self._entries[key]

    async def tracks(self) -> Mapping[str, Track]:
        return dict(self._tracks)

    async def serve(self, plugin: str, version: Version, *, wanted: bool = False) -> None:
        before = self._tracks.get(plugin, Track(version))
        self._tracks[plugin] = Track(version, before.shifts + wanted)


def _number(etag: str) -> int:
    return int(etag) if etag.isdigit() and len(etag) < 18 else 0
