"""The plugin by hand that is asked for everything (`asked_plugin.py`), and connections to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections, Served
from services.registry.host.host import Host
from tests.services.registry.plugins import hosting, make_plugin

REST = """
[[actions]]
name = "write"
input_schema = { type = "object", properties = { how = { type = "string" }, n = { type = "integer" } } }
output_schema = { type = "object", required = ["id"], properties = { id = { type = "integer" } } }
idempotency = "checked"

[[actions]]
name = "long"
idempotency = "none"
timeout = "2s"
long_running = true

[[actions]]
name = "read"
output_schema = { type = "object", required = ["id"], properties = { id = { type = "integer" } } }
idempotency = "read_only"

[[lookups]]
name = "commit"
entity_kinds = ["commit"]
input_schema = { type = "object", additionalProperties = false, properties = { deep = { type = "boolean" } } }

[[streams]]
name = "items"
default_interval = "60s"
cursor_version = 1

[[streams]]
name = "parts"
default_interval = "60s"
partitioned = true
"""
CAPABILITIES = '"release", "verify_webhook", "list_partitions", "lookup", "get_operation"'


def make_asked(
    below: Path, name: str = "asked", *, capabilities: str = CAPABILITIES, version: str = "1.0.0"
) -> Path:
    """Below `plugins` of this folder, its log beside it."""
    folder = make_plugin(below / "plugins", name, rest=REST, version=version)
    here = Path(__file__).parent
    raw = (here / "raw_plugin.py").read_text().replace('"calls.jsonl"', repr(str(below / "calls.jsonl")))
    (folder / "raw_plugin.py").write_text(raw)
    (folder / "plugin.py").write_text((here / "asked_plugin.py").read_text())
    manifest = folder / "plugin.toml"
    manifest.write_text(manifest.read_text().replace('["release"]', f"[{capabilities}]"))
    return below


def connected(number: int = 1, word: str = "", *, plugin: str = "asked", revision: int = 1) -> Served:
    return Served(
        connection=f"tenants/acme/connections/{plugin}-{number}",
        plugin=plugin,
        instance=f"instance-{plugin}-{number}",
        revision=revision,
        settings=json.dumps({"word": word}).encode(),
    )


@asynccontextmanager
async def asking(
    below: Path, *connections: Served, capabilities: str = CAPABILITIES
) -> AsyncIterator[tuple[Broker, Host]]:
    make_asked(below, capabilities=capabilities)
    async with hosting(below / "plugins") as host:
        yield Broker(host, FixedConnections(*connections)), host
