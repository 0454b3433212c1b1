"""Has plugins forget what they are not asked for any more: instances of old revisions, and of connections that ended.

Each registry does so for the processes that it calls. A revision that was followed by another is forgotten only
after a while: calls that began with it may still be under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from services.registry.broker.broker import Broker
from services.registry.connections.connection import State
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.host.prepared import Prepared
from services.registry.host.process import PluginProcess

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
UNKNOWN_SECONDS = 10.0
"""A connection that was made a moment ago may not be in the picture yet."""
OVER_SECONDS = 120.0
"""Longer than any call that a revision may have begun, but for a stream, which goes on with what it has."""


class Releaser:
    """`async with` it."""

    def __init__(
        self, host: Host, broker: Broker, picture: Picture, clock: Clock, over: float = OVER_SECONDS
    ) -> None:
        self._host, self._broker, self._picture = host, broker, picture
        self._clock, self._over = clock, over
        self._since: dict[tuple[int, str], float] = {}
        """When each was first seen to serve no more, by process and instance."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="release instances")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def release(self, connection: str) -> None:
        """All that is held for a connection, now."""
        for process, instance, held in list(self._prepared()):
            if held.connection == connection:
                await self._broker.calls.preparation.release(process, instance)

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception:  # a task's border: what is held too long costs memory, and no more
                log.exception("instances could not be released")

    async def _look(self) -> None:
        if not self._picture.snapshot.known:
            return
        content, now = self._picture.snapshot.content, self._clock.monotonic()
        idle: dict[tuple[int, str], float] = {}
        for process, instance, held in list(self._prepared()):
            connection = content.get(held.connection)
            if connection is not None and connection.state is not State.DELETING:
                if connection.served(connection.applied_revision).instance == instance:
                    continue
                patience = self._over
            else:
                patience = 0.0 if connection is not None else UNKNOWN_SECONDS
            since = idle[id(process), instance] = self._since.get((id(process), instance), now)
            if now - since >= patience and not self._broker.examining.concerns(instance):
                await self._broker.calls.preparation.release(process, instance)
        self._since = idle

    def _prepared(self) -> Iterator[tuple[PluginProcess, str, Prepared]]:
        for process in self._host.everything():
            launch = process.launch
            for instance, held in list(launch.prepared.items()) if launch is not None else ():
                yield process, instance, held
