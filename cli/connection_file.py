"""Connections in a file: JSON, JSON lines or TOML, each as people write it or as `list --json` printed it."""

from __future__ import annotations

import base64
import binascii
import json
import tomllib
from collections.abc import Mapping
from typing import Any

from cli import streams
from cli.connection_wanted import app_name, binding, isolation, read_bytes
from foundation.errors import Code, Problem
from tieline.registry.v1.connections_pb2 import AccountKey, Connection, RateLimit, SlotBinding

_TEXTS = ("title", "version_range", "etag")
_TAKEN = {
    "id",
    "name",
    "plugin",
    "settings",
    "credentials",
    "webhooks",
    "streams",
    "resync_policy",
    "labels",
    "isolation",
    "app",
    "account_keys",
    "rate_limit",
    *_TEXTS,
}


def read_many(path: str, parent: str) -> list[Connection]:
    """Every connection of the file; the problem names the first that is none."""
    raw = read_bytes(path, "FILE")
    documents = _toml(raw) if path.endswith(".toml") else _json(raw)
    if not documents:
        raise _bad("there is no connection in it")
    return [_connection(number, one, parent) for number, one in enumerate(documents, 1)]


def _json(raw: bytes) -> list[Any]:
    try:
        return _listed(json.loads(raw))
    except ValueError:
        lines = [line for line in raw.splitlines() if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise _bad(f"it is neither JSON nor lines of JSON ({error})") from None


def _toml(raw: bytes) -> list[Any]:
    try:
        return _listed(tomllib.loads(raw.decode()))
    except ValueError as error:
        raise _bad(f"it is not TOML ({error})") from None


def _listed(document: Any) -> list[Any]:
    if isinstance(document, dict):
        many = document.get("connections", document.get("items", [document]))
        return many if isinstance(many, list) else [many]
    return document if isinstance(document, list) else [document]


def _connection(number: int, document: Any, parent: str) -> Connection:
    where = f"connection {number}"
    if not isinstance(document, dict):
        raise _bad(f"{where} is not an object")
    id_ = str(document.get("id") or str(document.get("name", "")).rpartition("/")[2])
    if not id_:
        raise _bad(f"{where} has neither `id` nor `name`")
    where = f"{where} ({id_[:64]})"
    for key in document:
        if key not in _TAKEN and key not in Connection.DESCRIPTOR.fields_by_name:
            raise _bad(f"{where}: there is no {key!r}; known are {', '.join(sorted(_TAKEN))}")
    try:
        plugin = str(document.get("plugin", "")).removeprefix("plugins/")
        one = Connection(
            name=str(document.get("name", ""))
            if "/" in str(document.get("name", ""))
            else f"{parent}/connections/{id_}",
            plugin=f"plugins/{plugin}" if plugin else "",
            settings=_settings(document.get("settings", {})),
            credentials=_credentials(document.get("credentials", {}), parent),
            webhooks=document.get("webhooks", []),
            streams=streams.read(document.get("streams", [])),
            resync_policy=streams.read_policy(str(document.get("resync_policy", ""))),
            labels=document.get("labels", {}),
            app=app_name(str(document.get("app", ""))),
            account_keys=[
                AccountKey(key=str(one["key"] if isinstance(one, Mapping) else one))
                for one in document.get("account_keys", [])
            ],
            isolation=isolation(
                str(document.get("isolation", "")).lower().replace("_", "-").removeprefix("isolation-")
            ),
        )
        if limit := document.get("rate_limit"):
            one.rate_limit.CopyFrom(RateLimit(**limit))
        for name in _TEXTS:
            setattr(one, name, document.get(name, ""))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise _bad(f"{where}: {error}") from None
    return one


def _settings(value: Any) -> bytes:
    """An object, or as `--json` prints bytes."""
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise ValueError("settings are an object") from None
    if not isinstance(value, dict):
        raise TypeError("settings are an object")
    return json.dumps(value).encode()


def _credentials(value: Any, parent: str) -> list[SlotBinding]:
    if isinstance(value, Mapping):
        return [binding(f"{slot}={id_}", parent) for slot, id_ in value.items()]
    return [
        SlotBinding(slot=one["slot"], entry=one.get("entry", ""), credential=one["credential"])
        for one in value
    ]


def _bad(why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field="FILE", why=why)
