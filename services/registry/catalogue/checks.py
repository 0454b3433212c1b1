"""What a manifest must be beyond its form: names, versions, schemas and references that fit together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema_rs

from services.registry.catalogue.covered import is_covered
from services.registry.catalogue.versions import Range, Version
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.sdk.manifest import ManifestError

CONTRACTS = (1,)
"""The majors of the contract that this host speaks, best first."""

LONGEST_ACTION = timedelta(minutes=5)
_OURS = "tieline"

_NAME = re.compile(r"[a-z][a-z0-9-]{1,62}")
_PART = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TYPE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_]*)+")
_SECRET = re.compile(r"(?i)(password|passwd|secret|token|private_?key|api_?key|credential)")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_TEMPLATE = re.compile(r"\$\{settings:(/[^}]*)\}")
_PROGRAM = re.compile(r"[A-Za-z0-9._+-]+(\s*(>=)\s*\d+(\.\d+)*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check_itself(manifest: Manifest, _: Path) -> None:
    if not _NAME.fullmatch(manifest.name):
        raise ManifestError(("name",), "a name is 2 to 63 lower-case letters, digits and dashes")
    if manifest.name == _OURS:
        raise ManifestError(("name",), f"{_OURS} is the platform itself")
    try:
        Version.parse(manifest.version)
    except ValueError as error:
        raise ManifestError(("version",), str(error)) from None
    if manifest.contract not in CONTRACTS:
        spoken = " and ".join(map(str, CONTRACTS))
        raise ManifestError(("contract",), f"this host speaks contract {spoken}")


def _check_runtime(manifest: Manifest, folder: Path) -> None:
    kind = manifest.runtime.WhichOneof("kind")
    if kind is None:
        raise ManifestError(("runtime",), "it says neither process nor container nor remote")
    if kind == "container" and not manifest.runtime.container.image:
        raise ManifestError(("runtime", "container", "image"), "it names no image")
    if kind != "process":
        return
    process = manifest.runtime.process
    if not process.command or not all(process.command):
        raise ManifestError(("runtime", "process", "command"), "it names no program")
    source = process.install.WhichOneof("source")
    if source in {"requirements", "npm"}:
        name = getattr(process.install, source)
        lock = name if source == "requirements" else f"{name}/package-lock.json"
        _demand_beside(folder, lock, ("runtime", "process", "install", str(source)))
    for index, program in enumerate(process.programs):
        if not _PROGRAM.fullmatch(program):
            place = ("runtime", "process", "programs")
            raise ManifestError(place, f"entry {index + 1} is not like `git >= 2.30`")
    for name in process.pass_env:
        if not _VARIABLE.fullmatch(name) or name.startswith("TIELINE_") or _SECRET.search(name):
            place = ("runtime", "process", "pass_env")
            raise ManifestError(place, f"{name[:60]!r} is not a variable that a plugin may see")


def _demand_beside(folder: Path, name: str, place: Sequence[str]) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ManifestError(tuple(place), f"{name} is not beside this file")
    if not path.is_file():
        raise ManifestError(tuple(place), f"there is no file {name} beside this one")


def _check_settings(manifest: Manifest, _: Path) -> None:
    if not manifest.settings_schema:
        return
    schema = _checked_schema(manifest.settings_schema, ("settings_schema",))
    properties = schema.get("properties", {})
    for name, value in properties.items() if isinstance(properties, dict) else ():
        place = ("settings_schema", "properties", name)
        if _SECRET.search(name):
            raise ManifestError(place, "it looks like a secret; secrets belong into a credential slot")
        if not isinstance(value, dict):
            raise ManifestError(place, "a schema is a table")


def _check_schemas(manifest: Manifest, _: Path) -> None:
    for index, action in enumerate(manifest.actions):
        for key in ("input_schema", "output_schema"):
            if raw := getattr(action, key):
                _checked_schema(raw, ("actions", index, key))
    for index, lookup in enumerate(manifest.lookups):
        if lookup.input_schema:
            _checked_schema(lookup.input_schema, ("lookups", index, "input_schema"))


def _checked_schema(raw: bytes, place: tuple[str | int, ...]) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(raw)
    if _has_remote_reference(schema):
        raise ManifestError(place, "references outside the schema are not followed")
    try:
        jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        why = str(error).partition("\n")[0][:200]
        raise ManifestError(place, f"it is no JSON Schema: {why}") from None
    return schema


def _has_remote_reference(schema: object) -> bool:
    if isinstance(schema, dict):
        reference = schema.get("$ref", "#")
        remote = isinstance(reference, str) and not reference.startswith("#")
        return remote or any(map(_has_remote_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_remote_reference, schema))


def _check_names(manifest: Manifest, _: Path) -> None:
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


def _check_events(manifest: Manifest, _: Path) -> None:
    seen: set[str] = set()
    for index, event in enumerate(manifest.event_types):
        place = ("event_types", index, "type")
        if not _TYPE.fullmatch(event.type) or not event.type.startswith(f"{manifest.name}."):
            raise ManifestError(place, f"a type is dotted and begins with {manifest.name}.")
        if event.type in seen:
            raise ManifestError(place, f"{event.type} stands here twice")
        seen.add(event.type)


def _check_webhooks(manifest: Manifest, _: Path) -> None:
    slots = {slot.name for slot in manifest.credential_slots}
    for index, webhook in enumerate(manifest.webhooks):
        scheme = webhook.signature.WhichOneof("scheme")
        if scheme is None:
            raise ManifestError(("webhooks", index, "signature"), "without one its endpoint stays closed")
        if scheme in {"hmac", "token"} and (webhook.slot or "webhook") not in slots:
            place = ("webhooks", index, "slot")
            raise ManifestError(place, f"there is no credential slot {webhook.slot or 'webhook'}")


def _check_routing(manifest: Manifest, _: Path) -> None:
    """An account that anybody could write beside what is signed would be somebody else's deliveries."""
    for index, webhook in enumerate(manifest.webhooks):
        for number, extractor in enumerate(webhook.routing.account_key):
            place = ("webhooks", index, "routing", "account_key", number)
            if not extractor.WhichOneof("source"):
                raise ManifestError(place, "it does not say where to look")
            if not is_covered(extractor, webhook.signature):
                raise ManifestError(place, "the account must be inside what the signature covers")


def _check_slots(manifest: Manifest, _: Path) -> None:
    """Whatever names a slot names one that there is."""
    slots = {slot.name for slot in manifest.credential_slots}
    for index, slot in enumerate(manifest.credential_slots):
        if not slot.choices:
            raise ManifestError(("credential_slots", index, "choices"), "no kind of credential fits it")
        if slot.min_entries > (slot.max_entries or 1) or slot.min_entries < 0:
            why = f"more than the {slot.max_entries or 1} that it takes, or less than none"
            raise ManifestError(("credential_slots", index, "min_entries"), why)
    users: dict[str, Iterable[Any]] = {
        "streams": manifest.streams,
        "actions": manifest.actions,
        "lookups": manifest.lookups,
    }
    for key, items in users.items():
        for index, item in enumerate(items):
            if item.slot and item.slot not in slots:
                raise ManifestError((key, index, "slot"), f"there is no credential slot {item.slot}")


def _check_streams(manifest: Manifest, _: Path) -> None:
    webhooks = {webhook.name for webhook in manifest.webhooks}
    for index, stream in enumerate(manifest.streams):
        interval = stream.default_interval.ToTimedelta()
        if interval <= timedelta():
            raise ManifestError(("streams", index, "default_interval"), "a time between polls is needed")
        if stream.min_interval.ToTimedelta() > interval:
            why = "the usual interval is below it"
            raise ManifestError(("streams", index, "min_interval"), why)
        if stream.complements and stream.complements not in webhooks:
            why = f"there is no webhook {stream.complements}"
            raise ManifestError(("streams", index, "complements"), why)


def _check_actions(manifest: Manifest, _: Path) -> None:
    for index, action in enumerate(manifest.actions):
        if not timedelta() <= action.timeout.ToTimedelta() <= LONGEST_ACTION:
            raise ManifestError(("actions", index, "timeout"), "one attempt may take up to 300s")


def _check_egress(manifest: Manifest, _: Path) -> None:
    for index, egress in enumerate(manifest.egress):
        if not (_HOST.fullmatch(egress.host) or _TEMPLATE.fullmatch(egress.host)):
            why = "it is neither a name in lower case, nor one behind `*.`, nor `${settings:/...}`"
            raise ManifestError(("egress", index, "host"), why)
        if not all(0 < port < 65536 for port in egress.ports):
            raise ManifestError(("egress", index, "ports"), "a port is 1 to 65535")


def _check_dependencies(manifest: Manifest, folder: Path) -> None:
    for key, needs in (("dependencies", manifest.dependencies), ("libraries", manifest.libraries)):
        for name, range_ in sorted(needs.items()):
            if name == manifest.name:
                raise ManifestError((key, name), "a plugin does not need itself")
            try:
                Range.parse(range_)
            except ValueError as error:
                raise ManifestError((key, name), str(error)) from None
    if manifest.library:
        inside = (folder / manifest.library).resolve()
        if not inside.is_relative_to(folder.resolve()) or not inside.is_dir():
            raise ManifestError(("library",), f"there is no folder {manifest.library} beside this file")


def _check_limits(manifest: Manifest, _: Path) -> None:
    for field, value in manifest.limits.ListFields():
        amount = value.ToTimedelta().total_seconds() if field.message_type else value
        if amount <= 0:
            raise ManifestError(
                ("limits", field.name), "a limit is more than nothing; leave it out for the usual one"
            )
    if manifest.HasField("scratch") and manifest.scratch.quota_bytes <= 0:
        raise ManifestError(("scratch", "quota_bytes"), "it is nothing; leave `scratch` out for no disk")


CHECKS: Sequence[Callable[[Manifest, Path], None]] = (
    _check_itself,
    _check_runtime,
    _check_settings,
    _check_names,
    _check_events,
    _check_slots,
    _check_webhooks,
    _check_routing,
    _check_streams,
    _check_actions,
    _check_schemas,
    _check_egress,
    _check_dependencies,
    _check_limits,
)
"""Each raises a ManifestError with the place of what does not fit."""
