"""Plugins found on disk. Whatever is wrong with one is told with its file and line, and is nobody else's trouble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.registry.catalogue.checks import CHECKS
from services.registry.catalogue.toml_lines import line_of
from services.registry.catalogue.versions import Version
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.sdk.manifest import ManifestError, read_manifest

BUILT_IN = Path(__file__).resolve().parents[2] / "plugins"


@dataclass(frozen=True, slots=True)
class Refused:
    file: Path
    line: int
    pointer: str
    why: str

    @property
    def sentence(self) -> str:
        place = f":{self.line}" if self.line else ""
        return f"{self.file}{place}: {self.pointer + ': ' if self.pointer else ''}{self.why}"


@dataclass(frozen=True, slots=True)
class Found:
    """One plugin as its folder says it."""

    folder: Path
    manifest: Manifest
    objection: Refused | None = None
    """What is wrong with what lies there now; this is what lay there before."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> Version:
        return Version.parse(self.manifest.version)

    @property
    def key(self) -> tuple[str, Version]:
        return self.name, self.version


@dataclass(frozen=True, slots=True)
class Discovery:
    """What lies in the directories: several versions of a plugin side by side, and what is wrong with the rest."""

    plugins: Mapping[tuple[str, Version], Found]
    problems: tuple[Refused, ...]

    @classmethod
    def of(cls, read: Iterable[tuple[Path, Found | Refused]]) -> Self:
        """Who comes first keeps name and version."""
        plugins: dict[tuple[str, Version], Found] = {}
        problems: list[Refused] = []
        for file, found in read:
            if isinstance(found, Refused):
                problems.append(found)
                continue
            if found.objection is not None:
                problems.append(found.objection)
            first = plugins.setdefault(found.key, found)
            if first is not found:
                why = f"{first.folder} has {first.name} {first.version} already"
                problems.append(refused(file, ManifestError(("version",), why)))
        return cls(plugins, tuple(problems))


def files(directories: Sequence[Path]) -> Iterator[Path]:
    """Every `plugin.toml`: of the directories themselves, of what lies in them, and of versions in folders there."""
    for directory in dict.fromkeys(path.resolve() for path in directories):
        own = directory / "plugin.toml"
        if _is_there(own):
            yield own
            continue
        for folder in sorted(directory.glob("*")):
            inside = folder / "plugin.toml"
            yield from [inside] if _is_there(inside) else sorted(folder.glob("*/plugin.toml"))


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # nobody may look: whoever reads it will say why
        return True


def read(file: Path) -> Found | Refused:
    try:
        return Found(file.parent, read_checked(file))
    except ManifestError as error:
        return refused(file, error)


def read_checked(file: Path) -> Manifest:
    """The manifest, if everything in it fits together and lies beside it."""
    manifest = read_manifest(file)
    for check in CHECKS:
        check(manifest, file.parent)
    return manifest


def refused(file: Path, error: ManifestError) -> Refused:
    line = error.line
    if not line and error.place:
        with suppress(OSError):  # somebody takes it away at this moment
            line = line_of(file.read_text(errors="replace"), error.place)
    return Refused(file, line, "".join(f"/{part}" for part in error.place), error.why)
