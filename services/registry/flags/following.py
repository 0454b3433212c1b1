"""Has connections follow their flags: each one that a flip touches gets a revision that says so.

A flag is followed once for each of its versions. So a connection that somebody rolled back to a revision without
the flag stays without it, until the flag itself is changed again. Killed in the middle, or done by two replicas
at once, it ends the same: whoever is as the flag wants it is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.unit_of_work import Store
from services.registry.connections import store as connections
from services.registry.connections.applying import Applier
from services.registry.connections.connection import Connection, Revision, State
from services.registry.connections.picture import Picture
from services.registry.flags import store
from services.registry.flags.flag import Flag
from services.registry.recording import Change, Recorder
from tieline.registry.v1 import connections_pb2 as pb

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
AT_ONCE = 100


class Follower:
    """`async with` it."""

    def __init__(
        self, worker: Store, recorder: Recorder, applier: Applier, picture: Picture, clock: Clock
    ) -> None:
        self._worker, self._recorder = worker, recorder
        self._applier, self._picture, self._clock = applier, picture, clock
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def notice(self) -> None:
        """A flag was changed."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="follow flags")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def flags_of(self, plugin: str, connection: str) -> list[str]:
        """Those that are on for a connection that is being made."""
        async with self._worker.across_tenants() as work:
            flags = await store.listed(work, "", 10_000)
        return [flag.id for flag in flags if flag.is_on(plugin, connection)]

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
            except Problem as away:
                log.debug("flags are followed later", why=away.sentence)
            except Exception:  # a task's border
                log.exception("flags are followed later")
            await woken(self._wanted, LOOK_SECONDS)

    async def _look(self) -> None:
        async with self._worker.across_tenants() as work:
            behind = await store.behind(work)
        for flag in behind:
            await self._follow(flag)

    async def _follow(self, flag: Flag) -> None:
        while touched := await self._touched(flag):
            for connection in touched:
                await self._turn(flag, connection)
        async with self._worker.across_tenants() as work:
            await store.followed(work, flag)

    async def _touched(self, flag: Flag) -> Sequence[Connection]:
        async with self._worker.across_tenants() as work:
            everything = await connections.newest(work)
        differing = (
            connection
            for connection in everything
            if connection.state is not State.DELETING
            and (flag.id in connection.wanted.flags) is not flag.is_on(connection.plugin, connection.name)
        )
        return list(islice(differing, AT_ONCE))

    async def _turn(self, flag: Flag, connection: Connection) -> None:
        now = self._clock.now()
        turned = flag.is_on(connection.plugin, connection.name)
        new = Revision(
            number=connection.revision + 1,
            wanted=with_flag(connection.wanted, flag.id, on=turned),
            settings_version=connection.settings_version,
            author=f"{flag.name} by {flag.author}",
            create_time=now,
        )
        details = {"flag": flag.id, "revision": str(new.number)}
        change = Change(action="connection.flag", resource=connection.name, fields=["flags"], details=details)
        async with (
            self._recorder.making(change),
            self._worker.unit_of_work(tenants=[connection.tenant]) as work,
        ):
            if not await connections.succeed(work, connection, [new], connection.etag, now):
                return  # somebody changed it meanwhile: it is looked at again
        self._applier.notice()
        self._picture.notice()


def with_flag(wanted: pb.Connection, flag: str, *, on: bool) -> pb.Connection:
    changed = pb.Connection()
    changed.CopyFrom(wanted)
    kept = set(changed.flags) - {flag}
    changed.flags[:] = sorted(kept | {flag} if on else kept)
    return changed
