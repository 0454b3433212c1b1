"""What a plugin is let into the world with: the way out that it has, and what keeps it in.

Confined or not, its way out is the proxy. Confined, it has no other: a network of its own, in which nothing is
but the proxy's listener; the file system read-only, with a blank where the installation and people's homes are;
a user of its own where we are root. What is said of it afterwards was looked at on the living process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import structlog

from foundation.process.child import Child
from foundation.process.command import Command, Confinement
from foundation.process.confined import USERS, other_user, spawn_confined
from foundation.process.confining import PROXY_PORT
from foundation.process.errors import LaunchError
from foundation.process.output import Sink
from services.registry.egress.proxy import EgressProxy, Pass
from services.registry.egress.refusals import Refusal
from services.registry.host.orphans import network_of
from services.registry.host.places import PRIVATE, kept, written
from tieline.plugin.v1.manifest_pb2 import Manifest

log = structlog.get_logger(__name__)

THREADS = 128
"""Of one process. The kernel counts threads as processes; a manifest does not."""


class Wanted(StrEnum):
    AUTO = "auto"
    NONE = "none"
    CONFINED = "confined"


@dataclass(slots=True, eq=False)
class Enclosure:
    """Around one launch. Who initialises an instance says so here first, or its hosts are refused."""

    proxy: EgressProxy | None = None
    leave: Pass | None = None
    wanted: Wanted = Wanted.NONE
    user: int = 0
    hidden: Sequence[Path] = ()
    processes: int = 1
    confined: bool = False
    reason: str = ""
    """Why it is not confined, where that was wanted."""
    network: str = ""
    """The one that was made for it, where it is confined; ours to name until `close`, as our listener is in it."""
    _server: asyncio.Server | None = None

    def allow(self, instance: str, settings: bytes) -> None:
        if self.leave is not None:
            self.leave.allowed.allow(instance, settings)

    def forget(self, instance: str) -> None:
        if self.leave is not None:
            self.leave.allowed.forget(instance)

    @property
    def secrets(self) -> list[bytes]:
        """What nobody else may use: its way out."""
        return [] if self.leave is None else [self.leave.secret.encode()]

    @property
    def refused(self) -> list[Refusal]:
        return [] if self.leave is None else list(self.leave.refused)

    async def spawn(self, command: Command, sink: Sink) -> Child:
        """Start it as confined as is wanted and can be had. Raises LaunchError."""
        if self.proxy is None or self.leave is None:
            return await Child.spawn(command, sink)
        if self.wanted is not Wanted.NONE:
            try:
                return await self._confined(command, sink, self.proxy, self.leave)
            except LaunchError as failed:
                if self.wanted is Wanted.CONFINED:
                    raise
                self.reason = f"not confined: {failed.sentence}"
                log.warning("a plugin is not confined", plugin=command.name, why=failed.sentence)
        return await Child.spawn(replace(command, env={**command.env, **self.leave.environment()}), sink)

    def close(self) -> None:
        self.network = ""
        if self._server is not None:
            self._server.close()
        if self.proxy is not None and self.leave is not None:
            self.proxy.dismiss(self.leave)

    async def _confined(self, command: Command, sink: Sink, proxy: EgressProxy, leave: Pass) -> Child:
        if self.user and command.cwd is not None and command.cwd.stat().st_mode & 0o005 != 0o005:
            raise LaunchError(f"{command.name} cannot be confined: only root may read {command.cwd}")
        enclosed = replace(
            command,
            env={**command.env, **leave.environment(PROXY_PORT), "TMPDIR": "/tmp"},  # noqa: S108 - its own
            limits=replace(command.limits, processes=self.processes * THREADS),
        )
        confinement = Confinement(
            user=self.user,
            hide=tuple(self.hidden),
            private=PRIVATE,
            keep=kept(command),
            write=written(command),
        )
        child, listener = await spawn_confined(enclosed, confinement, sink)
        self._server = await proxy.listen(listener, leave)
        self.network = network_of(child.pid)
        self.confined, self.reason = True, ""
        return child


class Sandbox:
    """Makes an enclosure for every launch. Without a proxy it is none at all: for tests of other things."""

    def __init__(
        self,
        proxy: EgressProxy | None = None,
        wanted: Wanted = Wanted.NONE,
        hidden: Sequence[Path] = (),
    ) -> None:
        self._proxy = proxy
        self._wanted = wanted
        self._hidden = hidden
        self._users: dict[tuple[str, str], int] = {}

    def enclose(self, manifest: Manifest, cell: str = "") -> Enclosure:
        if self._proxy is None:
            return Enclosure()
        return Enclosure(
            self._proxy,
            self._proxy.admit(manifest.name, manifest.egress),
            self._wanted,
            user=self._user(manifest.name, cell) if other_user() else 0,
            hidden=self._hidden,
            processes=manifest.limits.processes or 1,
        )

    def _user(self, plugin: str, cell: str) -> int:
        """The same one for every launch; another one for whoever asked for a process apart.

        On kernels that cannot tell strangers apart, a user is all that lies between two processes. Only where
        there are more of them than users does somebody share one.
        """
        if (plugin, cell) not in self._users:
            start = sum(ord(mark) * 31**index for index, mark in enumerate(plugin + cell))
            taken = set(self._users.values())
            candidates = map(other_user, range(start, start + len(USERS)))
            free = (user for user in candidates if user not in taken)
            self._users[plugin, cell] = next(free, other_user(start))
        return self._users[plugin, cell]
