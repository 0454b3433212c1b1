"""The plugin host: every plugin of the catalogue as a process of its own, or several. It knows no tenants.

One version of a plugin serves whoever pins none; others run beside it as long as somebody needs them, and so do
processes that somebody wants apart. What the catalogue gains or loses is started or ended while all others serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import structlog

from foundation.clock import Clock, SystemClock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.process.cgroups import Cgroups
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import State
from foundation.store.errors import StoreError
from services.registry.catalogue.catalogue import Catalogue, Content, Published
from services.registry.catalogue.ledger import Key, Ledger, Track
from services.registry.catalogue.versions import ANY, Range, Version
from services.registry.host.process import PluginDown, PluginProcess
from services.registry.host.sandbox import Sandbox
from services.registry.host.socket_room import SocketRoom
from services.registry.host.watchdog import Patience
from services.registry.joining.remote import RemoteProcess, Roster
from tieline.plugin.v1.manifest_pb2 import Manifest

log = structlog.get_logger(__name__)

LOOK_SECONDS = 10.0
READY_SECONDS = 60.0
IDLE_SECONDS = 600.0
"""Without a call for so long, a process that runs beside the serving one is ended."""


class Routed(Protocol):
    """What says on which process a call belongs."""

    @property
    def plugin(self) -> str: ...
    @property
    def version_range(self) -> str: ...
    @property
    def cell(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one process."""

    plugin: str
    version: Version
    cell: str = ""

    @property
    def key(self) -> Key:
        return self.plugin, self.version


@dataclass(frozen=True, slots=True)
class Following:
    """A shift of another replica, on its way here."""

    version: Version
    task: asyncio.Task[None]


class Host:
    """`async with` it: plugins are started side by side and waited for by nobody."""

    def __init__(
        self,
        catalogue: Catalogue,
        ledger: Ledger,
        room: SocketRoom,
        *,
        policy: RestartPolicy | None = None,
        sandbox: Sandbox | None = None,
        roster: Roster | None = None,
        patience: Patience | None = None,
        cgroups: Cgroups | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.catalogue = catalogue
        self._ledger, self._room, self._policy = ledger, room, policy
        self._sandbox, self._patience, self._cgroups = sandbox, patience, cgroups
        self._roster = roster or Roster()
        self._clock = clock or SystemClock()
        self._slots: dict[Slot, PluginProcess] = {}
        self._serving: dict[str, Version] = {}
        self._ending: dict[PluginProcess, asyncio.Task[None]] = {}
        self._reconciled = Content()
        self._shifts: dict[str, int] = {}
        """Of those that somebody wanted, how many are done here."""
        self._following: dict[str, Following] = {}
        self._wanted = asyncio.Event()
        self.held: set[Key] = set()
        """Versions that somebody may return to at any moment: idle or not, their processes stay."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._reconcile()
        self._task = asyncio.create_task(self._keep(), name="keep plugins as the catalogue has them")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        for following in list(self._following.values()):
            await end(following.task)
        for task in self._ending.values():
            task.cancel()
        every = [*self._slots.values(), *self._ending]
        await asyncio.gather(*(process.aclose() for process in every), return_exceptions=True)

    @property
    def processes(self) -> Mapping[str, PluginProcess]:
        """The processes that serve whoever wants nothing special, by plugin."""
        return {
            slot.plugin: process
            for slot, process in self._slots.items()
            if not slot.cell and self._serving.get(slot.plugin) == slot.version
        }

    def everything(self) -> Iterator[PluginProcess]:
        """Every process there is, those that are about to end included."""
        yield from self._slots.values()
        yield from self._ending

    def versions(self, plugin: str) -> Sequence[Published]:
        """Newest first; empty: there is no such plugin."""
        return self.catalogue.content.versions(plugin)

    def serving(self, plugin: str) -> Version | None:
        """The version that serves whoever pins none."""
        return self._serving.get(plugin)

    def route(self, call: Routed) -> PluginProcess | None:
        """The process for it, started if need be; None where no fitting version can be."""
        published = self._published(call.plugin, call.version_range)
        if published is None or not published.startable:
            return None
        return self.beside(published, call.cell)

    def peek(self, call: Routed) -> PluginProcess | None:
        """The process for it, if there is one: nothing is started."""
        published = self._published(call.plugin, call.version_range)
        return (
            None if published is None else self._slots.get(Slot(published.name, published.version, call.cell))
        )

    def manifest(self, plugin: str, version_range: str = "") -> Manifest | None:
        published = self._published(plugin, version_range)
        return None if published is None else published.manifest

    def beside(self, published: Published, cell: str = "") -> PluginProcess:
        """The process of this very version, whichever serves."""
        slot = Slot(published.name, published.version, cell)
        if slot not in self._slots:
            self._slots[slot] = self._made(published, cell)
        return self._slots[slot]

    async def restart(self, process: PluginProcess) -> PluginProcess:
        """End it gently and start it anew, from what lies on disk now: nothing else changes what runs."""
        slot = next((slot for slot, one in self._slots.items() if one is process), None)
        wanted = self.catalogue.content.published.get(slot.key) if slot else None
        if slot is None or wanted is None or not wanted.startable or not _is_other(process, wanted):
            await process.restart()
            return process
        self._end(slot)
        self._slots[slot] = self._made(wanted, slot.cell)
        return self._slots[slot]

    async def shift(self, plugin: str, version: Version) -> None:
        """From now on this version serves whoever pins none. Calls in flight finish where they are."""
        self._serving[plugin] = version
        await self._remember(plugin, version, wanted=True)

    def look(self) -> None:
        """Somebody may have shifted a version elsewhere."""
        self._wanted.set()

    def retire(self, plugin: str, version: Version) -> None:
        """End what runs of a version, each process once its calls are finished."""
        for slot in [slot for slot in self._slots if slot.key == (plugin, version)]:
            self._end(slot)

    def _published(self, plugin: str, version_range: str) -> Published | None:
        """The serving version where that fits, else the newest that does."""
        content, range_ = self.catalogue.content, _range(version_range)
        serving = self._serving.get(plugin)
        if serving is not None and range_.admits(serving) and (plugin, serving) in content.published:
            return content.published[plugin, serving]
        fitting = [
            one
            for one in content.versions(plugin)
            if range_.admits(one.version) and one.status != Manifest.STATUS_INACTIVE
        ]
        return next((one for one in fitting if one.startable), fitting[0] if fitting else None)

    async def _keep(self) -> None:
        while True:
            await self._turned()
            try:
                await self._reconcile()
            except Exception:  # a task's border: what runs goes on
                log.exception("the plugins could not be brought in line with the catalogue")

    async def _turned(self) -> None:
        """Until the catalogue changes; now and then there is something to tidy up as well."""
        turned = asyncio.ensure_future(self.catalogue.turned(self._reconciled))
        wanted = asyncio.ensure_future(self._wanted.wait())
        try:
            await asyncio.wait([turned, wanted], timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turned.cancel()
            wanted.cancel()
            self._wanted.clear()

    async def _reconcile(self) -> None:
        tracks = await self._tracks()
        # What it becomes while this goes on is for the next time.
        content = self._reconciled = self.catalogue.content
        for slot, process in list(self._slots.items()):
            wanted = content.published.get(slot.key)
            if wanted is None or not wanted.startable or self._is_idle(slot, process):
                self._end(slot)
            else:
                process.outdated = _is_other(process, wanted)
        for plugin in self._serving.keys() - set(content.names()):
            del self._serving[plugin]
        for plugin in content.names():
            if tracks is None and plugin not in self._serving:
                continue  # the newest may not be the one that somebody wants
            track = (tracks or {}).get(plugin)
            self._follow(content, plugin, track)
            version = self._choice(content, plugin, track.version if track else None)
            if version is None:
                self._serving.pop(plugin, None)
                continue
            self.beside(content.published[plugin, version])
            if self._serving.get(plugin) != version:
                self._serving[plugin] = version
                await self._remember(plugin, version)

    def _follow(self, content: Content, plugin: str, track: Track | None) -> None:
        """Go where another replica was told to shift to, once a process for it is ready here."""
        if track is None:
            return
        wanted = self._is_behind(plugin, track)
        under_way = self._following.get(plugin)
        if under_way is not None:
            if wanted and under_way.version == track.version:
                return
            under_way.task.cancel()
        if not wanted:
            return
        published = content.published.get((plugin, track.version))
        if published is None or not published.startable:
            version = str(track.version)
            log.warning("a version that shall serve cannot be started here", plugin=plugin, version=version)
            return
        task = asyncio.create_task(self._move(published, track), name=f"follow {plugin}")
        self._following[plugin] = Following(track.version, task)

    def _is_behind(self, plugin: str, track: Track) -> bool:
        """Somebody wanted a shift that is not done here. What a replica fell back to by itself nobody wanted."""
        if self._serving.get(plugin) in {None, track.version}:
            self._shifts[plugin] = track.shifts
        return self._shifts.setdefault(plugin, track.shifts) != track.shifts

    async def _move(self, published: Published, track: Track) -> None:
        plugin, process = published.name, self.beside(published)
        try:
            async with process.call(READY_SECONDS):
                self._serving[plugin] = track.version
                self._shifts[plugin] = track.shifts
                log.info("another replica's shift is followed", plugin=plugin, version=str(track.version))
        except PluginDown as down:
            log.warning("another replica's shift is not followed yet", plugin=plugin, why=down.sentence)
        finally:
            following = self._following.get(plugin)
            if following is not None and following.task is asyncio.current_task():
                del self._following[plugin]

    def _choice(self, content: Content, plugin: str, tracked: Version | None) -> Version | None:
        """The version that shall serve: the one that does, unless it cannot any more."""
        able = [one for one in content.versions(plugin) if one.startable]
        active = [one for one in able if one.status == Manifest.STATUS_ACTIVE] or able
        present = self._serving.get(plugin) or tracked
        there = content.published.get((plugin, present)) if present is not None else None
        if there is not None and there.pending:
            return None  # whoever is installed sooner is not who was chosen
        if present is None or present not in {one.version for one in able}:
            return active[0].version if active else None
        process = self._slots.get(Slot(plugin, present))
        if process is not None and process.state is State.FAILED and active[0].version > present:
            log.info(
                "a new version takes over from one in quarantine",
                plugin=plugin,
                version=str(active[0].version),
            )
            return active[0].version
        return present

    async def _tracks(self) -> Mapping[str, Track] | None:
        """None: not known now."""
        try:
            return await self._ledger.tracks()
        except (Problem, StoreError) as away:
            log.warning("which versions shall serve is not known now", why=str(away))
            return None

    async def _remember(self, plugin: str, version: Version, *, wanted: bool = False) -> None:
        try:
            await self._ledger.serve(plugin, version, wanted=wanted)
        except (Problem, StoreError) as away:
            log.warning("which version serves is not remembered", plugin=plugin, why=str(away))

    def _is_idle(self, slot: Slot, process: PluginProcess) -> bool:
        serves = self._serving.get(slot.plugin) == slot.version or slot.key in self.held
        if serves and not slot.cell:
            return False
        return not process.calls_in_flight and self._clock.monotonic() - process.idle_since > IDLE_SECONDS

    def _made(self, published: Published, cell: str) -> PluginProcess:
        process: PluginProcess
        if published.runs_elsewhere:
            process = RemoteProcess(published, self._room, self._roster, cell=cell, clock=self._clock)
            process.start()
            return process
        process = PluginProcess(
            published,
            self._room,
            cell=cell,
            policy=self._policy,
            sandbox=self._sandbox,
            patience=self._patience,
            cgroups=self._cgroups,
            clock=self._clock,
        )
        process.start()
        return process

    def _end(self, slot: Slot) -> None:
        process = self._slots.pop(slot)
        task = asyncio.create_task(process.drain(), name=f"end {slot.plugin} {slot.version}")
        self._ending[process] = task
        task.add_done_callback(lambda _: self._ending.pop(process, None))


def _is_other(process: PluginProcess, wanted: Published) -> bool:
    present = process.published
    return (wanted.digest, wanted.environment) != (present.digest, present.environment)


@lru_cache(maxsize=1024)
def _range(text: str) -> Range:
    return Range.parse(text) if text else ANY
