"""500 connections of 50 tenants on 5 plugins: seconds until all of them are applied, and what the registry takes for them.

A whole installation (`tieline up`), the plugins made on the spot on the SDK. Created: all in 50 requests, one for
each tenant, until the last revision serves. Started again: from the start of `up` until every connection is known to
be well. Status: one call that answers for all tenants. Memory is the proportional set size, CPU that of the registry
and its plugins, over what is named. Loader, engines and services share this machine.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from bench.kit.measure import Line
from bench.kit.up import up
from foundation.identity.session import Session
from foundation.rpc import Connection, connect
from tieline.credentials.v1 import tenants_pb2_grpc
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.registry.v1 import connections_pb2_grpc, status_pb2_grpc
from tieline.registry.v1.connections_pb2 import ApplyConnectionsRequest
from tieline.registry.v1.connections_pb2 import Connection as Wanted
from tieline.registry.v1.status_pb2 import ConnectionStatus, ListAllConnectionStatusesRequest

TENANTS, EACH, PLUGINS = 50, 10, 5
REPETITIONS, ASKED = 3, 20
WITHIN = 300.0

MANIFEST = """
name = "{name}"
version = "1.0.0"
contract = 1
title = "{name}"

[runtime.process]
command = ["python", "-m", "plugin"]
install = {{ none = true }}

[settings_schema]
type = "object"
properties = {{ word = {{ type = "string" }} }}

[[event_types]]
type = "{name}.said"
description = "Something was said."
category = "system"
severity = "info"
"""
CODE = """
from tieline.sdk import Skip, serve

class Plugin:
    def configure(self, settings):
        return []

    def transform(self, instance, delivery):
        return Skip("SILENCE")

if __name__ == "__main__":
    serve(Plugin())
"""


def run() -> list[Line]:
    taken: dict[str, tuple[str, list[float]]] = {}

    def took(what: str, unit: str, value: float) -> None:
        taken.setdefault(what, (unit, []))[1].append(value)

    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory(prefix="tl-bench-", dir="/tmp") as directory:
            plugins = Path(directory) / "plugins"
            _make(plugins)
            data = Path(directory) / "data"
            with up(data, plugins) as process:
                registry = _registry(process)
                before, alone = _cpu(registry), _memory(registry)
                took("created, to all applied", "s", asyncio.run(_create(data)))
                took("CPU of creating", "s", _cpu(registry) - before)
                took("memory of the registry without connections", "MiB", alone)
                took("memory of the registry with them", "MiB", _memory(registry))
                before = _cpu(registry)
                time.sleep(10)
                took("CPU at rest, of 10 s", "s", _cpu(registry) - before)
                for seconds in asyncio.run(_ask(data)):
                    took("status of all in one call", "s", seconds)
            began = time.monotonic()
            with up(data, plugins):
                asyncio.run(_well(data))
                took("started again, to all well", "s", time.monotonic() - began)
    return [Line(what, values, unit) for what, (unit, values) in taken.items()]


def _make(below: Path) -> None:
    for number in range(PLUGINS):
        folder = below / f"quiet{number}"
        folder.mkdir(parents=True)
        (folder / "plugin.toml").write_text(MANIFEST.format(name=f"quiet{number}"))
        (folder / "plugin.py").write_text(CODE)


async def _create(data: Path) -> float:
    async with _channels(data) as (credentials, registry):
        tenants = tenants_pb2_grpc.TenantServiceStub(credentials)
        for number in range(TENANTS):
            await tenants.CreateTenant(CreateTenantRequest(tenant_id=f"tenant{number}"))
        stub = connections_pb2_grpc.ConnectionServiceStub(registry)
        began = time.monotonic()
        for number in range(TENANTS):
            parent = f"tenants/tenant{number}"
            wanted = [
                Wanted(
                    name=f"{parent}/connections/c{place}",
                    plugin=f"plugins/quiet{place % PLUGINS}",
                    settings=b'{"word": "w"}',
                )
                for place in range(EACH)
            ]
            answer = await stub.ApplyConnections(
                ApplyConnectionsRequest(parent=parent, connections=wanted), timeout=WITHIN
            )
            assert all(outcome.HasField("connection") for outcome in answer.outcomes), answer
        await _until_applied(registry)
        return time.monotonic() - began


async def _until_applied(registry: Connection) -> None:
    ends = time.monotonic() + WITHIN
    while time.monotonic() < ends:
        statuses = await _statuses(registry)
        if len(statuses) == TENANTS * EACH and all(one.plugin_version.endswith("@1.0.0") for one in statuses):
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("not all connections were applied")


async def _well(data: Path) -> None:
    async with _channels(data) as (_, registry):
        ends = time.monotonic() + WITHIN
        while time.monotonic() < ends:
            statuses = await _statuses(registry)
            if len(statuses) == TENANTS * EACH and all(
                one.health == ConnectionStatus.HEALTH_OK for one in statuses
            ):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError("not all connections are well")


async def _ask(data: Path) -> list[float]:
    async with _channels(data) as (_, registry):
        found = []
        for _ in range(ASKED):
            began = time.perf_counter()
            assert len(await _statuses(registry)) == TENANTS * EACH
            found.append(time.perf_counter() - began)
        return found


async def _statuses(registry: Connection) -> list[ConnectionStatus]:
    stub = status_pb2_grpc.StatusServiceStub(registry)
    answer = await stub.ListAllConnectionStatuses(ListAllConnectionStatusesRequest(page_size=1000))
    return list(answer.connection_statuses)


def _endpoints(data: Path) -> tuple[dict[str, str], str]:
    endpoints: dict[str, str] = json.loads((data / "run/endpoints.json").read_text())
    return endpoints, Path(endpoints["admin_token_file"]).read_text().strip()


@asynccontextmanager
async def _channels(data: Path) -> AsyncIterator[tuple[Connection, Connection]]:
    endpoints, token = _endpoints(data)
    async with connect(endpoints["credentials"]) as plain:
        session = Session(plain, token)
        async with (
            connect(endpoints["credentials"], session.token) as credentials,
            connect(endpoints["registry"], session.token) as registry,
        ):
            yield credentials, registry


def _registry(up: psutil.Process) -> list[psutil.Process]:
    (registry,) = [child for child in up.children() if "services.registry" in " ".join(child.cmdline())]
    return [registry, *registry.children(recursive=True)]


def _memory(processes: list[psutil.Process]) -> float:
    return float(sum(process.memory_full_info().pss for process in _living(processes))) / 1024**2


def _cpu(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in _living(processes)]
    return float(sum(one.user + one.system for one in times))


def _living(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    return (process for process in processes if process.is_running())
