"""What the options of `tieline connection create` and `update` say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cli import streams
from foundation.errors import Code, Problem
from tieline.registry.v1.connections_pb2 import AccountKey, Connection, RateLimit, SlotBinding
from tieline.registry.v1.processes_pb2 import ISOLATION_PER_TENANT, ISOLATION_UNSPECIFIED

MOST = 1_000_000


def add_wanted(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--credential",
        action="append",
        default=[],
        metavar="SLOT=ID",
        help="a credential of the tenant for a slot of the plugin, as in webhook=github-secret, or for one entry of"
        " it, as in api/eu=aws-eu; in an update, others stay, and without ID the slot is emptied",
    )
    add_settings(action)
    action.add_argument("--plugin-versions", metavar="RANGE", help="stay within these versions: >=1.2,<2")
    action.add_argument(
        "--isolation",
        choices=("shared", "per-tenant"),
        help="whether the tenant shares the plugin's process with others (default: shared)",
    )
    action.add_argument("--title", help="for people")
    action.add_argument(
        "--webhook",
        action="append",
        default=[],
        metavar="NAME",
        help="a webhook to receive; all that can be where none is named",
    )
    action.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="for your own sorting"
    )
    action.add_argument(
        "--app", metavar="ID", help="receive from the shared endpoint of this app; in an update '' leaves it"
    )
    action.add_argument(
        "--account-key",
        action="append",
        default=[],
        metavar="KEY",
        help="an account at the provider that is the tenant's, as the app's deliveries name it; all of them, in an"
        " update too",
    )
    streams.arguments(action)
    for name, what in (
        ("--calls-per-minute", "calls of its provider in a minute"),
        ("--concurrency", "at a time"),
    ):
        action.add_argument(
            name, type=_count, metavar="N", help=f"at most so many {what}; 0: no limit of its own"
        )
    action.add_argument("--validate-only", action="store_true", help="check everything, change nothing")


def add_settings(action: argparse.ArgumentParser) -> None:
    action.add_argument("--settings", default="", metavar="FILE", help="JSON; `-` reads stdin")


def settings_of(options: argparse.Namespace) -> bytes:
    return _settings(options.settings)


def wanted_of(options: argparse.Namespace, parent: str) -> Connection:
    """All that the options name. What an update does with it is in `changes`."""
    plugin = getattr(options, "plugin", "")
    return Connection(
        title=options.title or "",
        plugin=f"plugins/{plugin.removeprefix('plugins/')}" if plugin else "",
        settings=settings_of(options),
        version_range=options.plugin_versions or "",
        isolation=isolation(options.isolation or ""),
        credentials=[binding(text, parent) for text in options.credential],
        webhooks=options.webhook,
        app=app_name(options.app or ""),
        account_keys=[AccountKey(key=key) for key in options.account_key],
        streams=streams.chosen(options),
        resync_policy=streams.policy(options),
        labels=dict(_pair("--label", text) for text in options.label),
        rate_limit=_rate_limit(options, RateLimit()),
    )


def changes(
    options: argparse.Namespace, wanted: Connection, present: Connection
) -> tuple[Connection, list[str]]:
    """The fields that an update changes, with their new values."""
    given, mask = Connection(), []
    if options.settings or options.set:
        document = json.loads((wanted.settings if options.settings else present.settings) or b"{}")
        for text in options.set:
            _set(document, text)
        given.settings = json.dumps(document).encode()
        mask.append("settings")
    if options.credential:
        filled = {(one.slot, one.entry): one for one in (*present.credentials, *wanted.credentials)}
        given.credentials.extend(one for one in filled.values() if not one.credential.endswith("/"))
        mask.append("credentials")
    if options.label:
        labels = dict(present.labels) | dict(wanted.labels)
        given.labels.update({key: value for key, value in labels.items() if value})
        mask.append("labels")
    for name, chosen in (
        ("title", options.title is not None),
        ("version_range", options.plugin_versions is not None),
        ("isolation", options.isolation is not None),
        ("webhooks", bool(options.webhook)),
        ("app", options.app is not None),
        ("account_keys", bool(options.account_key) or options.app == ""),
        ("streams", bool(options.stream)),
        ("resync_policy", options.resync is not None),
        ("rate_limit", options.calls_per_minute is not None or options.concurrency is not None),
    ):
        if chosen:
            mask.append(name)
    given.title, given.version_range, given.isolation = wanted.title, wanted.version_range, wanted.isolation
    given.webhooks.extend(wanted.webhooks)
    given.app = wanted.app
    given.account_keys.extend(wanted.account_keys)
    given.streams.extend(wanted.streams)
    given.resync_policy = wanted.resync_policy
    limit = _rate_limit(options, present.rate_limit)
    if limit is not None:
        given.rate_limit.CopyFrom(limit)
    if not mask:
        why = "nothing is to be changed: name at least one option, as in --title or --set"
        raise Problem(Code.INVALID_ARGUMENT, field="update", why=why)
    return given, mask


def _rate_limit(options: argparse.Namespace, present: RateLimit) -> RateLimit | None:
    """What is named, over what there is; None: no limit."""
    limit = RateLimit(
        calls_per_minute=present.calls_per_minute
        if options.calls_per_minute is None
        else options.calls_per_minute,
        concurrency=present.concurrency if options.concurrency is None else options.concurrency,
    )
    return limit if limit.calls_per_minute or limit.concurrency else None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MOST}")
    return int(text)


def binding(text: str, parent: str) -> SlotBinding:
    place, id_ = _pair("--credential", text, "SLOT=ID")
    slot, _, entry = place.partition("/")
    return SlotBinding(slot=slot, entry=entry, credential=f"{parent}/credentials/{id_}")


def app_name(text: str) -> str:
    return f"apps/{text.removeprefix('apps/')}" if text else ""


def isolation(text: str) -> Any:
    return ISOLATION_PER_TENANT if text == "per-tenant" else ISOLATION_UNSPECIFIED


def read_bytes(path: str, field: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=f"{path}: {error.strerror}") from error


def _settings(path: str) -> bytes:
    if not path:
        return b""
    raw = read_bytes(path, "--settings")
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--settings", why=f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise Problem(Code.INVALID_ARGUMENT, field="--settings", why="it is not a JSON object")
    return raw


def _pair(field: str, text: str, shape: str = "KEY=VALUE") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=f"{text!r} is not {shape}")
    return key, value


def _set(document: Any, text: str) -> None:
    """One setting, at its JSON pointer; objects on the way are made."""
    pointer, value = _pair("--set", text, "POINTER=JSON")
    if not pointer.startswith("/"):
        why = f"{pointer!r} is no JSON pointer, as in /host or /regions/0"
        raise Problem(Code.INVALID_ARGUMENT, field="--set", why=why)
    *above, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    try:
        new = json.loads(value) if value else None
    except ValueError:
        why = f"{value!r} is not JSON; a text stands in quotes: {pointer}='\"{value}\"'"
        raise Problem(Code.INVALID_ARGUMENT, field="--set", why=why) from None
    try:
        for part in above:
            document = document[int(part)] if isinstance(document, list) else document.setdefault(part, {})
        if isinstance(document, list):
            _set_item(document, last, new, remove=not value)
        elif value:
            document[last] = new
        else:
            document.pop(last, None)
    except (ValueError, IndexError, TypeError, AttributeError):
        why = f"there is no place {pointer} in the settings"
        raise Problem(Code.INVALID_ARGUMENT, field="--set", why=why) from None


def _set_item(items: list[Any], place: str, new: Any, *, remove: bool) -> None:
    if remove:
        del items[int(place)]
    elif place == "-" or int(place) == len(items):
        items.append(new)
    else:
        items[int(place)] = new
