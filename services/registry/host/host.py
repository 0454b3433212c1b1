"""The plugin host: every plugin that was found, each as a process of its own. It knows no tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Protocol

import structlog

from foundation.process.restart import RestartPolicy
from services.registry.catalogue.manifests import Discovery
from services.registry.host.process import PluginProcess
from services.registry.host.sandbox import Sandbox
from services.registry.host.socket_room import SocketRoom
from tieline.plugin.v1.manifest_pb2 import Manifest

log = structlog.get_logger(__name__)


class Routed(Protocol):
    """What says on which process a call belongs."""

    @property
    def plugin(self) -> str: ...
    @property
    def version_range(self) -> str: ...
    @property
    def cell(self) -> str: ...


class Host:
    def __init__(self, discovery: Discovery, processes: Mapping[str, PluginProcess]) -> None:
        self.discovery = discovery
        self.processes = processes

    def route(self, call: Routed) -> PluginProcess | None:
        """The process for it; None where no fitting version is installed."""
        return self.processes.get(call.plugin)

    def manifest(self, plugin: str) -> Manifest | None:
        process = self.processes.get(plugin)
        return process.manifest if process else None


@asynccontextmanager
async def open_host(
    discovery: Discovery,
    room: SocketRoom,
    policy: RestartPolicy | None = None,
    sandbox: Sandbox | None = None,
) -> AsyncIterator[Host]:
    """Start them all side by side and wait for none: a slow or broken one is its own connections' trouble."""
    for problem in discovery.problems:
        log.error("a plugin's manifest is refused", why=problem.sentence)
    processes = {
        found.name: PluginProcess(found, room, policy, sandbox)
        for found in discovery.plugins
        if found.manifest.status != Manifest.STATUS_INACTIVE
    }
    for process in processes.values():
        process.start()
    try:
        yield Host(discovery, MappingProxyType(processes))
    finally:
        await asyncio.gather(*(process.aclose() for process in processes.values()))
