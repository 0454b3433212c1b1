"""The gateway's picture: each endpoint with all that is needed to receive there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from services.registry.apps.app import App, routed, signed_by_account
from services.registry.connections.connection import Connection, State
from services.registry.connections.picture import Connections
from services.registry.connections.wanted import webhooks_of
from services.registry.host.host import Host
from tieline.plugin.v1.webhook_pb2 import Webhook
from tieline.registry.v1.connections_pb2 import SlotBinding
from tieline.registry.v1.endpoints_pb2 import Endpoint


def endpoints(connections: Connections, host: Host) -> Iterator[Endpoint]:
    """Those of plugins that are installed here; others come back with their plugin."""
    for connection in connections.values():
        manifest = host.manifest(connection.plugin, connection.wanted.version_range)
        if manifest is None or connection.state is State.DELETING:
            continue
        received = set(webhooks_of(connection.wanted, manifest))
        for webhook in manifest.webhooks:
            if webhook.name in connection.endpoints and webhook.name in received:
                yield Endpoint(
                    endpoint=connection.endpoints[webhook.name],
                    connection=connection.name,
                    plugin=connection.plugin,
                    webhook=webhook,
                    settings=_settings(webhook, connection.settings),
                    credential=_credential(webhook, connection.wanted.credentials),
                )


def app_endpoints(apps: Mapping[str, App], connections: Connections, host: Host) -> Iterator[Endpoint]:
    """Those that many tenants share, each with whose the accounts are."""
    users: dict[str, list[Connection]] = {}
    for connection in connections.values():
        if connection.wanted.app and connection.state is not State.DELETING:
            users.setdefault(connection.wanted.app, []).append(connection)
    for app in apps.values():
        manifest = host.manifest(app.plugin, "")
        for webhook in routed(manifest) if manifest is not None else ():
            if webhook.name in app.endpoints:
                yield Endpoint(
                    endpoint=app.endpoints[webhook.name],
                    app=app.name,
                    plugin=app.plugin,
                    webhook=webhook,
                    routes=_routes(webhook, users.get(app.name, ())),
                    unmatched=app.content.unmatched or webhook.routing.unmatched,
                    app_owner=app.content.owner,
                    settings=_settings(webhook, app.content.settings),
                    credential=""
                    if signed_by_account(webhook)
                    else _credential(webhook, app.content.credentials),
                )


def _routes(webhook: Webhook, users: Iterable[Connection]) -> dict[str, str]:
    """An account has one connection: the database sees to that."""
    return {
        key: connection.name
        for connection in users
        if not connection.wanted.webhooks or webhook.name in connection.wanted.webhooks
        for key in connection.accounts
    }


def _credential(webhook: Webhook, bindings: Iterable[SlotBinding]) -> str:
    slot = webhook.slot or "webhook"
    return next((one.credential for one in bindings if one.slot == slot), "")


def _settings(webhook: Webhook, settings: bytes) -> bytes:
    """Of the settings, only what the scheme refers to; the gateway has no use for the others."""
    scheme = str(webhook.signature)
    wanted: dict[str, Any] = {
        key: value for key, value in json.loads(settings or b"{}").items() if f"/{key}" in scheme
    }
    return json.dumps(wanted, sort_keys=True).encode() if wanted else b""
