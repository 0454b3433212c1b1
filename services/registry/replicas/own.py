"""What this replica runs, under the names by which all know it, and what can be done to it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping

from foundation.errors import Code, Problem
from services.registry.host.described import described, told_rollout
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from services.registry.host.rollouts import Rollouts
from tieline.registry.v1.processes_pb2 import Process, Rollout

_REQUESTS_KEPT = 1000


class Own:
    def __init__(self, replica: str, host: Host, rollouts: Rollouts) -> None:
        self.replica, self._host, self.rollouts = replica, host, rollouts
        self.host_name = f"{socket.gethostname()}/{replica}"
        self._restarted: deque[str] = deque(maxlen=_REQUESTS_KEPT)

    def processes(self) -> dict[str, Process]:
        return {name: self._told(name, one) for name, one in self._named().items()}

    def find(self, name: str) -> str | None:
        """The whole name; people may leave the replica out."""
        named = self._named()
        if name in named:
            return name
        return next((whole for whole, one in named.items() if one.resource == name), None)

    async def restart(self, name: str, request_id: str) -> Process:
        """The same request again does nothing more."""
        process = self._process(name)
        if request_id not in self._restarted:
            if request_id:
                self._restarted.append(request_id)
            process = await self._host.restart(process)
        return self._told(name, process)

    def release(self, name: str) -> Process:
        process = self._process(name)
        process.release()
        return self._told(name, process)

    async def cancel(self, rollout: str) -> Rollout:
        return told_rollout(await self.rollouts.cancel(rollout))

    def _named(self) -> Mapping[str, PluginProcess]:
        """Of two with one name the one that goes on; the other is about to end."""
        found: dict[str, PluginProcess] = {}
        for one in self._host.everything():
            found.setdefault(one.resource if one.shared else f"{one.resource}-{self.replica}", one)
        return found

    def _process(self, name: str) -> PluginProcess:
        found = self._named().get(name)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"process {name}")
        return found

    def _told(self, name: str, process: PluginProcess) -> Process:
        return described(process, name, self.host_name)
