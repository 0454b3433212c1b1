"""`tieline connection`: one tenant's use of one plugin."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from datetime import UTC
from pathlib import Path
from typing import Any

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import show, show_list
from foundation.errors import Code, Problem
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import (
    Connection,
    CreateConnectionRequest,
    GetConnectionRequest,
    ListConnectionsRequest,
    ProviderSubscription,
    SlotBinding,
)
from tieline.registry.v1.processes_pb2 import ISOLATION_PER_TENANT, ISOLATION_UNSPECIFIED


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="connect; the answer names the URL to enter at the provider")
    create.add_argument("id", help="lower-case letters, digits and dashes")
    create.add_argument("--plugin", required=True, metavar="NAME", help="see `tieline plugin list`")
    create.add_argument(
        "--credential",
        action="append",
        default=[],
        metavar="SLOT=ID",
        help="a credential of the tenant for a slot of the plugin, as in webhook=github-secret",
    )
    create.add_argument("--settings", default="", metavar="FILE", help="JSON; `-` reads stdin")
    create.add_argument(
        "--plugin-versions", default="", metavar="RANGE", help="stay within these versions: >=1.2,<2"
    )
    create.add_argument(
        "--isolation",
        choices=("shared", "per-tenant"),
        default="shared",
        help="whether the tenant shares the plugin's process with others",
    )
    create.add_argument("--title", default="", help="for people")
    create.add_argument("--validate-only", action="store_true", help="check everything, change nothing")
    actions.add_parser("show", help="show one").add_argument("id")
    listing = actions.add_parser("list", help="show all of a tenant")
    add_paging(listing)


async def connection(options: argparse.Namespace) -> None:
    parent = need_tenant(options)
    wanted = _wanted(options, parent) if options.action == "create" else None
    async with client(options) as installation:
        stub = connections_pb2_grpc.ConnectionServiceStub(installation.registry)
        if wanted is not None:
            request = CreateConnectionRequest(
                parent=parent,
                connection_id=options.id,
                connection=wanted,
                request_id=str(uuid.uuid4()),
                validate_only=options.validate_only,
            )
            made = await stub.CreateConnection(request)
            show(options, made, _text(made), _more(made))
        elif options.action == "show":
            one = await stub.GetConnection(GetConnectionRequest(name=f"{parent}/connections/{options.id}"))
            show(options, one, _text(one), _more(one))
        else:
            page = await stub.ListConnections(
                ListConnectionsRequest(parent=parent, page_size=options.limit, page_token=options.page_token)
            )
            show_list(options, page.connections, map(_line, page.connections), page.next_page_token)


def _wanted(options: argparse.Namespace, parent: str) -> Connection:
    return Connection(
        title=options.title,
        plugin=f"plugins/{options.plugin.removeprefix('plugins/')}",
        settings=_settings(options.settings),
        version_range=options.plugin_versions,
        isolation=ISOLATION_PER_TENANT if options.isolation == "per-tenant" else ISOLATION_UNSPECIFIED,
        credentials=[_binding(text, parent) for text in options.credential],
    )


def _binding(text: str, parent: str) -> SlotBinding:
    place, equals, id_ = text.partition("=")
    if not equals:
        raise Problem(Code.INVALID_ARGUMENT, field="--credential", why=f"{text!r} is not SLOT=ID")
    slot, _, entry = place.partition("/")
    return SlotBinding(slot=slot, entry=entry, credential=f"{parent}/credentials/{id_}")


def _settings(path: str) -> bytes:
    if not path:
        return b""
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        json.loads(raw)
    except OSError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--settings", why=f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--settings", why=f"it is not JSON ({error})") from error
    return raw


def _line(one: Connection) -> str:
    return f"{one.name:<50} {_state(one):<10} {one.plugin:<24} {one.title}".rstrip()


def _more(one: Connection) -> dict[str, Any]:
    """For the many connections with one webhook: its URL by a name that a script can rely on."""
    urls = list(one.webhook_urls.values())
    return {"webhook_url": urls[0]} if len(urls) == 1 else {}


def _text(one: Connection) -> str:
    lines = [_line(one)]
    if one.HasField("application_failure"):
        lines.append(f"  not applied: {one.application_failure.message}")
    lines += [f"  {webhook}: {url}" for webhook, url in sorted(one.webhook_urls.items())]
    for subscription in one.subscriptions:
        lines.append(f"  {_subscribed(subscription)}")
    return "\n".join(lines)


def _subscribed(one: ProviderSubscription) -> str:
    if one.HasField("failure"):
        return f"subscription of {one.webhook}: {one.failure.reason} {one.failure.message}"
    until = f" until {one.expire_time.ToDatetime(UTC):%Y-%m-%d %H:%M}" if one.HasField("expire_time") else ""
    return f"subscription of {one.webhook}: {one.subscription_id}{until}"


def _state(one: Connection) -> str:
    return Connection.State.Name(one.state).removeprefix("STATE_").lower()
