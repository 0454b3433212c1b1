"""What a plugin is let into the world with: the way out that it has, and what keeps it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.output import Sink
from services.registry.egress.proxy import EgressProxy, Pass
from services.registry.egress.refusals import Refusal
from tieline.plugin.v1.manifest_pb2 import Manifest


@dataclass(slots=True, eq=False)
class Enclosure:
    """Around one launch. Who initialises an instance says so here first, or its hosts are refused."""

    proxy: EgressProxy | None = None
    leave: Pass | None = None

    def allow(self, instance: str, settings: bytes) -> None:
        if self.leave is not None:
            self.leave.allowed.allow(instance, settings)

    def forget(self, instance: str) -> None:
        if self.leave is not None:
            self.leave.allowed.forget(instance)

    @property
    def refused(self) -> list[Refusal]:
        return [] if self.leave is None else list(self.leave.refused)

    @property
    def environment(self) -> Mapping[str, str]:
        return {} if self.leave is None else self.leave.environment()

    async def spawn(self, command: Command, sink: Sink) -> Child:
        return await Child.spawn(command, sink)

    def close(self) -> None:
        if self.proxy is not None and self.leave is not None:
            self.proxy.dismiss(self.leave)


class Sandbox:
    """Makes an enclosure for every launch. Without a proxy it is none at all: for tests of other things."""

    def __init__(self, proxy: EgressProxy | None = None) -> None:
        self._proxy = proxy

    def enclose(self, manifest: Manifest) -> Enclosure:
        if self._proxy is None:
            return Enclosure()
        return Enclosure(self._proxy, self._proxy.admit(manifest.name, manifest.egress))
