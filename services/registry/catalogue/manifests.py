"""Plugins found on disk. Whatever is wrong with one is told with its file and line, and is nobody else's trouble."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.registry.catalogue.toml_lines import line_of
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.sdk.manifest import ManifestError, read_manifest

BUILT_IN = Path(__file__).resolve().parents[2] / "plugins"
CONTRACT = 1

_NAME = re.compile(r"[a-z][a-z0-9-]{1,62}")
_PART = re.compile(r"[a-z][a-z0-9_]{0,62}")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?")
_TYPE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_]*)+")
_SECRET = re.compile(r"(?i)(password|passwd|secret|token|private_?key|api_?key|credential)")


@dataclass(frozen=True, slots=True)
class Found:
    """One plugin as its folder says it."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True, slots=True)
class Refused:
    file: Path
    line: int
    pointer: str
    why: str

    @property
    def sentence(self) -> str:
        return f"{self.file}:{self.line}: {self.pointer + ': ' if self.pointer else ''}{self.why}"


@dataclass(frozen=True, slots=True)
class Discovery:
    plugins: tuple[Found, ...]
    problems: tuple[Refused, ...]


def discover(directories: Sequence[Path]) -> Discovery:
    """Every folder with a `plugin.toml`: the directories themselves, and what lies directly in them."""
    plugins: dict[str, Found] = {}
    problems: list[Refused] = []
    for file in _files(directories):
        try:
            found = Found(file.parent, read_checked(file))
        except ManifestError as error:
            problems.append(_refused(file, error))
            continue
        first = plugins.setdefault(found.name, found)
        if first is not found:
            again = ManifestError(("name",), f"{first.folder} has the plugin {found.name} already")
            problems.append(_refused(file, again))
    return Discovery(tuple(plugins.values()), tuple(problems))


def read_checked(file: Path) -> Manifest:
    """The manifest, if everything in it fits together."""
    manifest = read_manifest(file)
    for check in (_check_itself, _check_settings, _check_names, _check_events, _check_webhooks):
        check(manifest)
    return manifest


def _files(directories: Sequence[Path]) -> Iterator[Path]:
    for directory in dict.fromkeys(path.resolve() for path in directories):
        own = directory / "plugin.toml"
        yield from [own] if own.is_file() else sorted(directory.glob("*/plugin.toml"))


def _refused(file: Path, error: ManifestError) -> Refused:
    line = error.line
    if not line and error.place:
        line = line_of(file.read_text(errors="replace"), error.place)
    return Refused(file, line, "".join(f"/{part}" for part in error.place), error.why)


def _check_itself(manifest: Manifest) -> None:
    if not _NAME.fullmatch(manifest.name):
        raise ManifestError(("name",), "a name is 2 to 63 lower-case letters, digits and dashes")
    if not _VERSION.fullmatch(manifest.version):
        raise ManifestError(("version",), "a version is three numbers, as in 1.4.0")
    if manifest.contract != CONTRACT:
        raise ManifestError(("contract",), f"this host speaks contract {CONTRACT}")
    if manifest.runtime.WhichOneof("kind") != "process":
        raise ManifestError(("runtime",), "only [runtime.process] can be started here")
    if not manifest.runtime.process.command:
        raise ManifestError(("runtime", "process", "command"), "it names no program")


def _check_settings(manifest: Manifest) -> None:
    if not manifest.settings_schema:
        return
    schema = json.loads(manifest.settings_schema)
    for name, value in dict(schema.get("properties", {})).items():
        place = ("settings_schema", "properties", name)
        if _SECRET.search(name):
            raise ManifestError(place, "it looks like a secret; secrets belong into a credential slot")
        if not isinstance(value, dict):
            raise ManifestError(place, "a schema is a table")
    if _has_remote_reference(schema):
        raise ManifestError(("settings_schema",), "references outside the schema are not followed")


def _has_remote_reference(schema: object) -> bool:
    if isinstance(schema, dict):
        reference = schema.get("$ref", "#")
        remote = isinstance(reference, str) and not reference.startswith("#")
        return remote or any(map(_has_remote_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_remote_reference, schema))


def _check_names(manifest: Manifest) -> None:
    lists: dict[str, Sequence[Any]] = {
        "credential_slots": manifest.credential_slots,
        "streams": manifest.streams,
        "webhooks": manifest.webhooks,
        "actions": manifest.actions,
        "lookups": manifest.lookups,
    }
    for key, items in lists.items():
        seen: set[str] = set()
        for index, item in enumerate(items):
            if not _PART.fullmatch(item.name):
                raise ManifestError((key, index, "name"), "a name is lower-case letters, digits and _")
            if item.name in seen:
                raise ManifestError((key, index, "name"), f"{item.name} stands here twice")
            seen.add(item.name)


def _check_events(manifest: Manifest) -> None:
    seen: set[str] = set()
    for index, event in enumerate(manifest.event_types):
        place = ("event_types", index, "type")
        if not _TYPE.fullmatch(event.type) or not event.type.startswith(f"{manifest.name}."):
            raise ManifestError(place, f"a type is dotted and begins with {manifest.name}.")
        if event.type in seen:
            raise ManifestError(place, f"{event.type} stands here twice")
        seen.add(event.type)


def _check_webhooks(manifest: Manifest) -> None:
    slots = {slot.name for slot in manifest.credential_slots}
    for index, webhook in enumerate(manifest.webhooks):
        scheme = webhook.signature.WhichOneof("scheme")
        if scheme is None:
            raise ManifestError(("webhooks", index, "signature"), "without one its endpoint stays closed")
        if scheme in {"hmac", "token"} and (webhook.slot or "webhook") not in slots:
            place = ("webhooks", index, "slot")
            raise ManifestError(place, f"there is no credential slot {webhook.slot or 'webhook'}")
