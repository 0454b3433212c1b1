"""The plugin whose provider is a file (`acting_plugin.py`), and words for what tests ask of operations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from foundation.engines.testing import Served
from foundation.rpc import Connection as Channel
from services.registry.main import serve
from services.registry.settings import RegistrySettings
from tests.services.registry.conftest import ADMIN, Running, prepared, ready
from tests.services.registry.plugins import make_plugin
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, SlotBinding
from tieline.registry.v1.operations_pb2 import (
    GetOperationRequest,
    ListOperationsRequest,
    Operation,
    SubmitOperationRequest,
)
from tieline.registry.v1.operations_pb2_grpc import OperationServiceStub

ACTION = """
[[actions]]
name = "{name}"
idempotency = "{kind}"
long_running = true
timeout = "{timeout}"
input_schema = {{ type = "object", additionalProperties = false, properties = {{ how = {{ type = "string" }}, n = {{ type = "integer" }} }} }}
output_schema = {{ type = "object", required = ["id"], properties = {{ id = {{ type = "string" }} }} }}
"""
HOOK = SlotBinding(slot="webhook", credential="tenants/acme/credentials/hook")
CONNECTION = "tenants/acme/connections/main"


def make_acting(below: Path, *, asked: bool = True, timeout: str = "60s", plugin: str = "acting") -> Path:
    """Actions `post` (it would be done twice), `put` (the plugin looks first) and `pay` (the provider knows the key)."""
    rest = "".join(
        ACTION.format(name=name, kind=kind, timeout=timeout)
        for name, kind in (("post", "none"), ("put", "checked"), ("pay", "native"))
    )
    code = Path(__file__).with_name("acting_plugin.py").read_text()
    folder = make_plugin(below / "plugins", plugin, rest=rest)
    (folder / "plugin.py").write_text(code.replace('Path("where")', f"Path({str(below)!r})"))
    manifest = (folder / "plugin.toml").read_text()
    if asked:
        manifest = manifest.replace('["release"]', '["release", "get_operation"]')
    (folder / "plugin.toml").write_text(manifest)
    return below


def acting_settings(settings: RegistrySettings, **more: Any) -> RegistrySettings:
    """The plugin writes where it is told to, and what is lost is found soon."""
    return replace(settings, sandbox="none", operation_lease_seconds=3.0, **more)


@asynccontextmanager
async def acting_registry(engines: Served, below: Path) -> AsyncIterator[Running]:
    """A registry with the plugin, and one connection to it."""
    make_acting(below)
    async with prepared(engines, below) as running:
        running.settings = acting_settings(running.settings)
        task = asyncio.create_task(serve(running.settings, running.stopping))
        try:
            await ready(running, task)
            await connect_acting(running)
            yield running
        finally:
            running.stopping.set()
            await task


def lines(below: Path, name: str) -> list[dict[str, Any]]:
    file = below / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def of_key(below: Path, name: str, key: str) -> int:
    return sum(one["key"] == key for one in lines(below, name))


def effects(below: Path, key: str) -> int:
    return of_key(below, "effects", key)


async def connect_acting(running: Running, id_: str = "main", plugin: str = "acting") -> str:
    wanted = Connection(plugin=f"plugins/{plugin}", credentials=[HOOK])
    request = CreateConnectionRequest(parent="tenants/acme", connection_id=id_, connection=wanted)
    async with running.as_(ADMIN) as channel:
        made = await connections_pb2_grpc.ConnectionServiceStub(channel).CreateConnection(request)
    name: str = made.name
    return name


def wanted(
    action: str, key: str = "", *, connection: str = CONNECTION, order: str = "", **arguments: Any
) -> SubmitOperationRequest:
    operation = Operation(
        connection=connection,
        action=action,
        idempotency_key=key,
        arguments=json.dumps(arguments).encode(),
        ordering_key=order,
    )
    return SubmitOperationRequest(parent="tenants/acme", operation=operation)


async def submit(channel: Channel, *request: Any, **more: Any) -> Operation:
    return await OperationServiceStub(channel).SubmitOperation(wanted(*request, **more))


async def found(channel: Channel, operation: Operation) -> Operation:
    return await OperationServiceStub(channel).GetOperation(GetOperationRequest(name=operation.name))


async def every(channel: Channel, **more: Any) -> list[Operation]:
    request = ListOperationsRequest(parent="tenants/acme", page_size=1000, **more)
    return list((await OperationServiceStub(channel).ListOperations(request)).operations)


def state(operation: Operation) -> str:
    return Operation.State.Name(operation.state).removeprefix("STATE_")
