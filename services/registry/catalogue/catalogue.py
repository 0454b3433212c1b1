"""Which plugins there are: the directories, looked through again and again, and what became of what lies there.

A folder that appears is read once it has stopped changing; one that disappears takes its plugin along. What is
refused, cannot be installed or lacks something it needs is told, and is nobody else's trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import structlog

from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from foundation.process.errors import ProcessError
from foundation.store.errors import StoreError
from services.registry.catalogue.folder import FolderError, Signature, digest, signature
from services.registry.catalogue.installing import Environment, Installer, InstallError
from services.registry.catalogue.ledger import Entry, Key, Ledger
from services.registry.catalogue.manifests import Discovery, Found, Refused, files, read, refused
from services.registry.catalogue.programs import missing
from services.registry.catalogue.resolving import Candidate, Resolution, resolve
from services.registry.catalogue.versions import ANY, Range, Version
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.sdk.manifest import ManifestError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
INSTALL_AGAIN_SECONDS = 30.0
INSTALL_AGAIN_AT_MOST = 3600.0


@dataclass(frozen=True, slots=True)
class Published:
    """One version of one plugin."""

    found: Found
    digest: bytes
    entry: Entry
    environment: Environment | None = None
    """None: not installed yet, or not at all."""
    failure: str = ""
    """Why it cannot be started."""

    @property
    def manifest(self) -> Manifest:
        return self.found.manifest

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def version(self) -> Version:
        return self.found.version

    @property
    def status(self) -> Manifest.Status.ValueType:
        return self.entry.status or self.manifest.status or Manifest.STATUS_ACTIVE

    @property
    def startable(self) -> bool:
        return self.status != Manifest.STATUS_INACTIVE and self.environment is not None and not self.failure

    @property
    def pending(self) -> bool:
        """Not known yet whether it can be started."""
        return self.status != Manifest.STATUS_INACTIVE and self.environment is None and not self.failure

    @property
    def runs_elsewhere(self) -> bool:
        """It joins by itself; nobody starts it here."""
        return self.manifest.runtime.WhichOneof("kind") != "process"


@dataclass(frozen=True, slots=True)
class Content:
    """All of it at one moment."""

    published: Mapping[Key, Published] = field(default_factory=dict)
    problems: tuple[Refused, ...] = ()

    def names(self) -> list[str]:
        return sorted({name for name, _ in self.published})

    def versions(self, plugin: str) -> list[Published]:
        """Newest first."""
        mine = [one for one in self.published.values() if one.name == plugin]
        return sorted(mine, key=lambda one: one.version, reverse=True)

    def newest(self, plugin: str, range_: Range = ANY) -> Published | None:
        """What a new connection would get: an active version, or else one that is on its way out."""
        resolution = self.resolve(plugin, range_)
        return self.published.get((plugin, resolution.chosen[plugin])) if resolution.chosen else None

    def resolve(self, plugin: str, range_: Range) -> Resolution:
        return resolve(_candidates(self.published.values()), plugin, range_)


class Catalogue:
    """`async with` it: what lies there is known then, and looked at again until the end."""

    def __init__(
        self,
        directories: Sequence[Path],
        ledger: Ledger,
        installer: Installer,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._directories, self._ledger, self._installer = directories, ledger, installer
        self._look_seconds = look_seconds
        self._seen: dict[Path, _Seen] = {}
        self._restless: dict[Path, Signature | None] = {}
        self._entries: Mapping[Key, Entry] = {}
        self._installed: dict[Key, _Installation] = {}
        self._looking = asyncio.Lock()
        self._wanted, self._turned = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.content = Content()

    async def __aenter__(self) -> Self:
        await self._look(settled=False)
        self._task = asyncio.create_task(self._keep(), name="watch plugin directories")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        for installation in self._installed.values():
            await end(installation.task)

    async def turned(self, known: Content) -> None:
        """Wait until it is another than this one."""
        while self.content is known:
            await self._turned.wait()

    async def rescan(self) -> tuple[list[Published], list[Published]]:
        """Look now; what was added and what was removed since the last look. What failed is tried again."""
        before = self.content.published
        for installation in self._installed.values():
            installation.again()
        await self._look(settled=False)
        after = self.content.published
        return (
            [after[key] for key in after.keys() - before.keys()],
            [before[key] for key in before.keys() - after.keys()],
        )

    async def override(self, key: Key, status: Manifest.Status.ValueType, etag: str) -> Published:
        if key not in self.content.published:
            raise Problem(Code.NOT_FOUND, what=f"version {key[1]} of plugin {key[0]}")
        entry = await self._ledger.override(key, status, etag)
        self._entries = {**self._entries, key: entry}
        self._publish()
        return self.content.published[key]

    async def _keep(self) -> None:
        while True:
            await woken(self._wanted, self._look_seconds)
            try:
                await self._look(settled=True)
            except Exception:  # a task's border: what is known may be late, never gone
                log.exception("the plugin directories could not be looked through")

    async def _look(self, *, settled: bool) -> None:
        async with self._looking:
            # Folders are read on another thread: a slow disk must not hold up the calls that go through here.
            signatures = await asyncio.to_thread(_signatures, self._directories)
            for file, now in list(signatures.items()):
                before = self._seen.get(file)
                if before is not None and before.signature == now:
                    self._restless.pop(file, None)
                elif settled and self._restless.get(file) != now:
                    self._restless[file] = now
                else:
                    self._restless.pop(file, None)
                    self._seen[file] = await asyncio.to_thread(_read, file, now, before)
            for file in self._seen.keys() - signatures.keys():
                # Somebody may be replacing it this very moment.
                if settled and file not in self._restless:
                    self._restless[file] = None
                else:
                    self._restless.pop(file, None)
                    del self._seen[file]
            # In the order of the directories: who comes first keeps name and version, while it is replaced too.
            if self._seen.keys() <= signatures.keys():
                self._seen = {file: self._seen[file] for file in signatures if file in self._seen}
            await self._remember()
            self._publish()

    async def _remember(self) -> None:
        new = self._discovery().plugins.keys() - self._entries.keys()
        try:
            self._entries = await self._ledger.seen(new)
        except (Problem, StoreError) as away:
            log.warning("what was decided about plugins is not known now", why=str(away))

    def _discovery(self) -> Discovery:
        return Discovery.of((file, seen.found) for file, seen in self._seen.items())

    def _publish(self) -> None:
        """Put together what is known, and tell whoever waits if that is anything new."""
        discovery = self._discovery()
        found, problems = discovery.plugins, list(discovery.problems)
        for key in self._installed.keys() - found.keys():
            self._installed.pop(key).give_up()
        published = {}
        for key, one in found.items():
            seen = self._seen[one.folder / "plugin.toml"]
            entry = self._entries.get(key)
            if entry is not None:
                installation = self._installation(key, one, seen.digest)
                environment, failure = installation.environment, installation.failure
                if environment is not None and failure:
                    why = f"{failure}; what was installed before is used until then"
                    problems.append(refused(one.folder / "plugin.toml", ManifestError((), why)))
                    failure = ""
                published[key] = Published(one, seen.digest, entry, environment, failure)
        content = Content(published, tuple(problems))
        content = replace(content, published={key: _bound(one, content) for key, one in published.items()})
        if content == self.content:
            return
        for problem in set(content.problems) - set(self.content.problems):
            log.error("a plugin's manifest is refused", why=problem.sentence)
        self.content = content
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    def _installation(self, key: Key, found: Found, digest: bytes) -> _Installation:
        there = self._installed.get(key)
        if there is not None and there.digest == digest and there.found == found:
            return there
        if there is not None:
            there.give_up()
        self._installed[key] = _Installation(self._installer, found, digest, self._publish, there)
        return self._installed[key]


@dataclass(frozen=True, slots=True)
class _Seen:
    signature: Signature
    found: Found | Refused
    digest: bytes = b""


class _Installation:
    """One plugin's way into its environment; what needs none is there at once.

    Where files were changed, what was installed for them before serves on until this one is done.
    """

    def __init__(
        self,
        installer: Installer,
        found: Found,
        digest: bytes,
        done: Callable[[], None],
        before: _Installation | None = None,
    ) -> None:
        self.found, self.digest = found, digest
        self.environment: Environment | None = None
        if before is not None and before.found.folder == found.folder:
            self.environment = before.environment
        self.failure = ""
        self._before = None if before is None else before.task
        self.task: asyncio.Task[None] | None = None
        self._installer, self._done = installer, done
        self._again = asyncio.Event()
        process = found.manifest.runtime.process
        if process.install.WhichOneof("source") in {None, "none"} and not process.programs:
            self.environment = Environment(found.folder)
        else:
            self.task = asyncio.create_task(self._keep(), name=f"install {found.name}")

    def again(self) -> None:
        self._again.set()

    def give_up(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _keep(self) -> None:
        # It holds the lock of the environment until it has ended.
        await end(self._before)
        pause = INSTALL_AGAIN_SECONDS
        while True:
            self._again.clear()
            try:
                if why := await missing(self.found.manifest.runtime.process.programs):
                    raise InstallError(why)  # noqa: TRY301 - one way out for every reason
                environment = await self._installer.install(self.found)
            except (InstallError, ProcessError, OSError) as failed:
                self.failure = f"it is not installed: {failed}"
                log.warning("a plugin is not installed", plugin=self.found.name, why=self.failure)
                self._done()
                await woken(self._again, pause)
                pause = min(pause * 2, INSTALL_AGAIN_AT_MOST)
            else:
                self.environment, self.failure = environment, ""
                log.info("a plugin is installed", plugin=self.found.name, version=self.found.manifest.version)
                self._done()
                return


def _signatures(directories: Sequence[Path]) -> dict[Path, Signature]:
    found = {}
    for file in files(directories):
        try:
            found[file] = signature(file.parent)
        except (FolderError, OSError):
            found[file] = ()  # whoever reads it will say why
    return found


def _read(file: Path, now: Signature, before: _Seen | None) -> _Seen:
    found = read(file)
    if isinstance(found, Refused):
        return _kept(now, found, before)
    try:
        whole = digest(file.parent)
    except (FolderError, OSError) as error:
        return _kept(now, refused(file, ManifestError((), str(error))), before)
    if before is not None and isinstance(before.found, Found) and _is_republished(before.found, found):
        why = f"{found.name} {found.version} was published with another manifest: give it a new version"
        return _kept(now, refused(file, ManifestError(("version",), why)), before)
    return _Seen(now, found, whole)


def _kept(now: Signature, problem: Refused, before: _Seen | None) -> _Seen:
    """Somebody's slip in a file is no reason to end what serves: what lay there before goes on."""
    if before is None or isinstance(before.found, Refused):
        return _Seen(now, problem)
    return _Seen(now, replace(before.found, objection=problem), before.digest)


def _is_republished(before: Found, now: Found) -> bool:
    """What runs, and what connections were checked against, does not change under a published version."""
    return before.key == now.key and before.manifest != now.manifest


def _candidates(published: Iterable[Published]) -> dict[str, list[Candidate]]:
    """Active ones first, then those on their way out, each newest first."""
    able = [one for one in published if one.status != Manifest.STATUS_INACTIVE]
    able.sort(key=lambda one: (one.status != Manifest.STATUS_DEPRECATED, one.version), reverse=True)
    candidates: dict[str, list[Candidate]] = {}
    for one in able:
        candidates.setdefault(one.name, []).append(
            Candidate(one.name, one.version, tuple(_needs(one.manifest)))
        )
    return candidates


def _needs(manifest: Manifest) -> Iterator[tuple[str, Range]]:
    for needs in (manifest.dependencies, manifest.libraries):
        for name, range_ in sorted(needs.items()):
            yield name, Range.parse(range_)


def _bound(one: Published, content: Content) -> Published:
    """With the libraries that it needs, or with the reason why they are not to be had."""
    if not (one.manifest.dependencies or one.manifest.libraries) or one.environment is None:
        return one
    resolution = content.resolve(one.name, Range.parse(f"={one.version}"))
    if not resolution.chosen:
        return replace(one, failure=f"what it needs is not there: {resolution.why_not}")
    libraries = []
    for name in sorted(one.manifest.libraries):
        other = content.published[name, resolution.chosen[name]]
        if not other.manifest.library:
            return replace(one, failure=f"{name} {other.version} has no library folder to import from")
        libraries.append(other.found.folder / other.manifest.library)
    return replace(one, environment=replace(one.environment, libraries=tuple(libraries)))
