"""What somebody wants of a connection, held against the manifest: every fault with its place, before anything is kept."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jsonschema_rs

from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from services.registry.apps.app import App, may_hold, with_defaults
from services.registry.catalogue.versions import Range
from services.registry.connections.choices import check_streams
from tieline.plugin.v1.manifest_pb2 import CredentialSlot, Manifest
from tieline.registry.v1.connections_pb2 import Connection, SlotBinding

SETTINGS_BYTES = 256 * 1024
DEPTH = 64
FAULTS_TOLD = 5
LINE_BYTES = 256
ACCOUNTS = 100
ACCOUNT_BYTES = 512
"""As the inbox takes them."""
# What a caller may write, and no more: a new field of the contract is of no effect until it stands here.
SETTABLE = (
    "title",
    "plugin",
    "version_range",
    "settings",
    "credentials",
    "webhooks",
    "isolation",
    "labels",
    "streams",
    "resync_policy",
    "rate_limit",
    "app",
    "account_keys",
)
_FIXED = ("plugin",)
"""Chosen once, when the connection is made."""


def settable(given: Connection) -> Connection:
    """The part of it that a caller may write; what only the platform says is left out, as the contract has it."""
    wanted = Connection()
    _copy(given, wanted, SETTABLE)
    wanted.version_range = _range(given.version_range)
    wanted.settings = canonical(given.settings)
    for one in wanted.account_keys:
        one.ClearField("claim")  # only the platform says how an account is known
    return wanted


def merged(present: Connection, given: Connection, mask: Sequence[str]) -> Connection:
    """What is wanted now, with the fields that the mask names as they are given."""
    if not mask:
        raise _bad("update_mask", "it is empty: name the fields to change")
    for name in mask:
        _demand_changeable(name)
    wanted = Connection()
    wanted.CopyFrom(present)
    _copy(given, wanted, mask)
    changed = settable(wanted)
    changed.flags[:] = present.flags
    return changed


def changed_fields(before: Connection, after: Connection) -> list[str]:
    """Names of what differs."""
    return [name for name in (*SETTABLE, "flags") if _only(before, name) != _only(after, name)]


def demand_line(field: str, text: str) -> None:
    """What a person wrote is shown in lists of others: it is one line, and steers no terminal."""
    if len(text.encode()) > LINE_BYTES:
        raise _bad(field, f"it is longer than {LINE_BYTES} bytes")
    if any(unicodedata.category(mark) in {"Cc", "Zl", "Zp"} for mark in text):
        raise _bad(field, "it holds a line break or another control character")


def settings_faults(settings: bytes, manifest: Manifest) -> list[str]:
    """What the plugin's schema says against them, each with its place."""
    return list(_faults(settings, manifest.settings_schema))[:FAULTS_TOLD]


def _copy(source: Connection, target: Connection, names: Iterable[str]) -> None:
    for name in names:
        target.ClearField(name)  # type: ignore[arg-type]  # SETTABLE are its fields
    part = Connection()
    part.CopyFrom(source)
    for field, _ in source.ListFields():
        if field.name not in names:
            part.ClearField(field.name)  # type: ignore[arg-type]  # one of its fields
    target.MergeFrom(part)


def _only(connection: Connection, name: str) -> Connection:
    part = Connection()
    _copy(connection, part, (name,))
    return part


def _demand_changeable(name: str) -> None:
    if name in _FIXED:
        raise _bad("update_mask", f"{name!r} never changes: make another connection")
    if name not in SETTABLE:
        there = name in Connection.DESCRIPTOR.fields_by_name
        why = "only the platform says it" if there else "there is no such field"
        changeable = ", ".join(one for one in SETTABLE if one not in _FIXED)
        raise _bad("update_mask", f"{name[:100]!r}: {why}; what may change is {changeable}")


def check(wanted: Connection, manifest: Manifest, tenant: str, app: App | None = None) -> None:
    """Raise the problem that names what cannot be; return if all of it fits."""
    if len(wanted.labels) > 32:
        raise _bad("connection.labels", "there are more than 32")
    for field, text in (
        ("title", wanted.title),
        *(("labels", part) for label in wanted.labels.items() for part in label),
    ):
        demand_line(f"connection.{field}", text)
    _check_app(wanted, app)
    below = app.content.settings if app is not None else b""
    faults = settings_faults(with_defaults(below, wanted.settings), manifest)
    if faults:
        raise _bad("connection.settings", "; ".join(faults))
    known = {webhook.name for webhook in manifest.webhooks}
    for index, name in enumerate(wanted.webhooks):
        if name not in known:
            raise _bad(f"connection.webhooks[{index}]", f"{manifest.name} has no webhook {name!r}")
    check_streams(wanted, manifest)
    if wanted.rate_limit.calls_per_minute < 0 or wanted.rate_limit.concurrency < 0:
        raise _bad("connection.rate_limit", "it is negative; leave out what has no limit")
    _check_bindings(wanted, manifest, tenant, app)


def webhooks_of(wanted: Connection, manifest: Manifest) -> list[str]:
    """Those that arrive at endpoints of its own: those that were chosen, or all that have what they need.

    What an app receives for it has no endpoint here, unless the connection has a secret of its own too.
    """
    filled = {binding.slot for binding in wanted.credentials}
    chosen = set(wanted.webhooks)
    return [
        webhook.name
        for webhook in manifest.webhooks
        if (not chosen or webhook.name in chosen)
        and ((chosen and not wanted.app) or _needs(webhook.slot or "webhook", manifest) <= filled)
    ]


def slot_named(manifest: Manifest, name: str) -> CredentialSlot | None:
    return next((slot for slot in manifest.credential_slots if slot.name == name), None)


def _needs(slot: str, manifest: Manifest) -> set[str]:
    return {slot} if slot_named(manifest, slot) else set()


def _range(text: str) -> str:
    try:
        return Range.parse(text).text
    except ValueError as error:
        raise _bad("connection.version_range", str(error)) from None


def canonical(settings: bytes, field: str = "connection.settings") -> bytes:
    if len(settings) > SETTINGS_BYTES:
        raise _bad(field, f"they are larger than {SETTINGS_BYTES} bytes")
    try:
        document: Any = json.loads(settings or b"{}")
        json.dumps(
            document, ensure_ascii=False, allow_nan=False
        ).encode()  # Python reads more than JSON may say
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _bad(field, "they are not a JSON object")
    if _depth(document) > DEPTH:
        raise _bad(field, f"they are nested more than {DEPTH} deep")
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _depth(document: Any) -> int:
    depth, level = 0, [document]
    while level:
        depth += 1
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [part for some in parts for part in some if isinstance(part, dict | list)]
    return depth


def _faults(settings: bytes, schema: bytes) -> Iterator[str]:
    """By place; the values stay out of it, in case somebody put a secret where none belongs."""
    validator = jsonschema_rs.validator_for(json.loads(schema or b"{}"), mask="the value")
    for error in validator.iter_errors(json.loads(settings)):
        place = "".join(f"/{part}" for part in error.instance_path)
        yield f"{place or '/'}: {error.message}"


def _check_app(wanted: Connection, app: App | None) -> None:
    if wanted.app and app is None:
        raise _bad("connection.app", f"there is no {wanted.app[:100]!r}; ask who runs the platform")
    if app is not None and app.content.plugin != wanted.plugin:
        raise _bad("connection.app", f"{app.name} is of {app.content.plugin}, and this is {wanted.plugin}")
    if wanted.account_keys and app is None:
        raise _bad("connection.account_keys", "accounts are an app's: name the app")
    if len(wanted.account_keys) > ACCOUNTS:
        raise _bad("connection.account_keys", f"there are more than {ACCOUNTS}")
    seen: set[str] = set()
    for index, one in enumerate(wanted.account_keys):
        field = f"connection.account_keys[{index}].key"
        if not one.key or len(one.key.encode()) > ACCOUNT_BYTES or not one.key.isprintable():
            raise _bad(field, f"an account has 1 to {ACCOUNT_BYTES} bytes that can be printed")
        if one.key in seen:
            raise _bad(field, "it is named twice")
        seen.add(one.key)


def _check_bindings(wanted: Connection, manifest: Manifest, tenant: str, app: App | None) -> None:
    filled: set[tuple[str, str]] = set()
    for index, binding in enumerate(wanted.credentials):
        _check_binding(binding, manifest, tenant, f"connection.credentials[{index}]")
        if (binding.slot, binding.entry) in filled:
            raise _bad(f"connection.credentials[{index}]", "this entry is filled twice")
        filled.add((binding.slot, binding.entry))
    for slot in manifest.credential_slots:
        entries = sum(name == slot.name for name, _ in filled)
        if entries < slot.min_entries and not _held_by(app, slot):
            if slot.holder == CredentialSlot.HOLDER_APP:
                raise _bad("connection.app", f"the slot {slot.name} is filled by an app: name one that does")
            raise _bad("connection.credentials", f"the slot {slot.name} needs a credential")
        if entries > (slot.max_entries or 1):
            raise _bad("connection.credentials", f"the slot {slot.name} takes {slot.max_entries or 1}")


def _held_by(app: App | None, slot: CredentialSlot) -> bool:
    return app is not None and may_hold(slot) and app.binding(slot.name) is not None


def _check_binding(binding: SlotBinding, manifest: Manifest, tenant: str, field: str) -> None:
    slot = slot_named(manifest, binding.slot)
    if slot is None:
        raise _bad(f"{field}.slot", f"{manifest.name} has no slot {binding.slot!r}")
    if slot.holder == CredentialSlot.HOLDER_APP:
        raise _bad(f"{field}.slot", "its credential is the app's")
    if (slot.max_entries > 1) != bool(binding.entry):
        why = "its entries have names" if slot.max_entries > 1 else "it has one entry, without a name"
        raise _bad(f"{field}.entry", why)
    parse("tenants/*/credentials/*", binding.credential, f"{field}.credential")
    if tenant_of(binding.credential) != tenant:
        raise _bad(f"{field}.credential", "it belongs to another tenant")


def _bad(field: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field=field, why=why)
