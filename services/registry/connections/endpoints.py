"""The gateway's picture: each endpoint with all that is needed to receive there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.registry.connections.connection import State
from services.registry.connections.picture import Connections
from services.registry.connections.wanted import webhooks_of
from services.registry.host.host import Host
from tieline.plugin.v1.webhook_pb2 import Webhook
from tieline.registry.v1.connections_pb2 import Connection
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
                    settings=_settings(webhook, connection.wanted.settings),
                    credential=_credential(webhook, connection.wanted),
                )


def _credential(webhook: Webhook, wanted: Connection) -> str:
    slot = webhook.slot or "webhook"
    return next((one.credential for one in wanted.credentials if one.slot == slot), "")


def _settings(webhook: Webhook, settings: bytes) -> bytes:
    """Of the settings, only what the scheme refers to; the gateway has no use for the others."""
    scheme = str(webhook.signature)
    wanted: dict[str, Any] = {
        key: value for key, value in json.loads(settings or b"{}").items() if f"/{key}" in scheme
    }
    return json.dumps(wanted, sort_keys=True).encode() if wanted else b""
