"""The gateway's picture: each endpoint with all that is needed to receive there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.registry.connections.picture import Connections
from services.registry.host.host import Host
from tieline.plugin.v1.webhook_pb2 import Webhook
from tieline.registry.v1.endpoints_pb2 import Endpoint


def endpoints(connections: Connections, host: Host) -> Iterator[Endpoint]:
    """Those of plugins that are installed here; others come back with their plugin."""
    for connection in connections.values():
        manifest = host.manifest(connection.plugin)
        for webhook in manifest.webhooks if manifest else ():
            if webhook.name in connection.endpoints:
                yield Endpoint(
                    endpoint=connection.endpoints[webhook.name],
                    connection=connection.name,
                    plugin=connection.plugin,
                    webhook=webhook,
                    settings=_settings(webhook, connection.wanted.settings),
                )


def _settings(webhook: Webhook, settings: bytes) -> bytes:
    """Of the settings, only what the scheme refers to; the gateway has no use for the others."""
    scheme = str(webhook.signature)
    wanted: dict[str, Any] = {
        key: value for key, value in json.loads(settings or b"{}").items() if f"/{key}" in scheme
    }
    return json.dumps(wanted, sort_keys=True).encode() if wanted else b""
