"""What people ask of schedules: looking at them, polling now, beginning again, reading the past."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.registry.connections.connection import Connection
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.polling.checkpoints import Checkpoints, Place
from services.registry.recording import Change, Recorder
from services.registry.schedules import orders
from services.registry.schedules.schedule import OVER, Key, Kind, Schedule, State, key_of
from services.registry.schedules.wishes import matches
from tieline.plugin.v1.fetch_pb2 import Partition
from tieline.plugin.v1.manifest_pb2 import Manifest, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What somebody wants read of the past."""

    connection: str
    stream: str
    globs: Sequence[str]
    start: datetime
    end: datetime
    request_id: str


class ScheduleBook:
    def __init__(
        self,
        *,
        own: Store,
        checkpoints: Checkpoints,
        picture: Picture,
        host: Host,
        recorder: Recorder,
        clock: Clock,
        due: Callable[[], None],
    ) -> None:
        self._own, self._checkpoints = own, checkpoints
        self._picture, self._host = picture, host
        self._recorder, self._clock, self._due = recorder, clock, due

    async def get(self, key: Key) -> Schedule:
        async with self._own.unit_of_work(tenants=[key.tenant], read_only=True) as work:
            found = await orders.get(work, key)
        if found is None:
            what = f"schedule {key.id} of connection {key.connection} in tenant {key.tenant}"
            raise Problem(Code.NOT_FOUND, what=what)
        return found

    async def listed(
        self, tenant: str, connection: str, stream: str, *, after: tuple[str, str], limit: int
    ) -> list[Schedule]:
        """`connection` empty: of all."""
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await orders.listed(work, tenant, connection, stream, after=after, limit=limit)

    async def run(self, key: Key) -> Schedule:
        found = await self.get(key)
        self._demand_alive(found, "run")
        async with self._recorder.making(Change(action="schedule.run", resource=key.name)):
            await self._make_due(key)
        return await self.get(key)

    async def reset(self, key: Key, start_time: datetime | None) -> Schedule:
        found = await self.get(key)
        self._demand_alive(found, "reset")
        if found.kind is Kind.LIST:
            why = "it looks for the stream's parts and reads nothing; reset theirs"
            raise Problem(Code.STATE_REFUSES, what=key.name, wanted="reset", why=why)
        if start_time is not None and found.kind is Kind.BACKFILL:
            why = "a backfill begins where its window does"
            raise Problem(Code.INVALID_ARGUMENT, field="start_time", why=why)
        if start_time is not None and start_time > self._clock.now():
            raise Problem(Code.INVALID_ARGUMENT, field="start_time", why="it is yet to come")
        fields = [] if start_time is None else ["start_time"]
        async with self._recorder.making(Change(action="schedule.reset", resource=key.name, fields=fields)):
            place = Place(key.resource, found.stream, found.partition.id, found.backfill)
            # Whoever polls it now is taken over from, and so cannot put the old checkpoint back.
            await self._checkpoints.forget(await self._checkpoints.claim(place), start_time)
            await self._make_due(key)
        return await self.get(key)

    async def backfill(self, past: Past) -> Schedule:
        """The first of its schedules: there is one for each part."""
        connection, stream = await self._stream(past)
        if past.start >= past.end:
            why = "the window ends before it begins"
            raise Problem(Code.INVALID_ARGUMENT, field="start_time", why=why)
        if past.end > self._clock.now():
            raise Problem(Code.INVALID_ARGUMENT, field="end_time", why="it is yet to come")
        if past.request_id and (there := await self._present(connection.tenant, past)):
            return there
        parts = await self._parts(connection, stream, past.globs)
        number = hashlib.sha256(f"{past.connection} {past.request_id}".encode()).hexdigest()
        # The same request makes the same name, so of two that come together one is made.
        name = number[:12] if past.request_id else secrets.token_hex(6)
        change = Change(
            action="schedule.backfill",
            resource=past.connection,
            details={"stream": stream.name, "backfill": name, "parts": str(len(parts))},
        )
        own = self._own.unit_of_work(tenants=[connection.tenant])
        async with self._recorder.making(change), own as work:
            keys = await orders.start(
                work,
                key_of(past.connection, stream.name),
                parts,
                backfill=name,
                window=(past.start, past.end),
                request_id=past.request_id,
            )
        self._due()
        return await self.get(keys[0])

    async def cancel(self, key: Key) -> Schedule:
        found = await self.get(key)
        if found.kind is not Kind.BACKFILL:
            raise Problem(Code.INVALID_ARGUMENT, field="name", why="it is no backfill")
        if found.state not in OVER or (found.failure and found.failure.reason == "CONNECTION_RESTS"):
            change = Change(action="schedule.backfill.cancel", resource=key.name)
            async with (
                self._recorder.making(change),
                self._own.unit_of_work(tenants=[key.tenant]) as work,
            ):
                await orders.cancel(work, key, found.backfill)
        return await self.get(key)

    async def _make_due(self, key: Key) -> None:
        async with self._own.unit_of_work(tenants=[key.tenant]) as work:
            await orders.run(work, key)
        self._due()

    def _demand_alive(self, found: Schedule, wanted: str) -> None:
        why = ""
        if found.gone:
            why = "the provider does not list this part any more"
        elif found.kind is Kind.BACKFILL and found.state is State.DONE:
            why = "it has read its window; start another backfill"
        elif found.kind is Kind.BACKFILL and found.failure and found.failure.reason == "CANCELLED":
            why = "somebody ended it; start another backfill"
        if why:
            raise Problem(Code.STATE_REFUSES, what=found.key.name, wanted=wanted, why=why)

    async def _stream(self, past: Past) -> tuple[Connection, Stream]:
        connection = self._picture.snapshot.content.get(past.connection)
        if connection is None:
            await self._picture.look()
            connection = self._picture.snapshot.content.get(past.connection)
        if connection is None:
            raise Problem(Code.NOT_FOUND, what=f"connection {past.connection}")
        manifest = self._host.manifest(connection.plugin, connection.wanted.version_range) or Manifest()
        able = [stream.name for stream in manifest.streams if stream.backfill]
        for stream in manifest.streams:
            if stream.name == past.stream and stream.backfill:
                return connection, stream
        those = f"of {connection.plugin} these can: {', '.join(able)}" if able else "none of its plugin can"
        why = f"{past.stream[:100]!r} is no stream that can read the past; {those}"
        raise Problem(Code.INVALID_ARGUMENT, field="stream", why=why)

    async def _parts(self, connection: Connection, stream: Stream, globs: Sequence[str]) -> list[Partition]:
        if not stream.partitioned:
            if globs:
                why = f"{stream.name} has no partitions"
                raise Problem(Code.INVALID_ARGUMENT, field="partitions", why=why)
            return [Partition()]
        async with self._own.unit_of_work(tenants=[connection.tenant], read_only=True) as work:
            known = await orders.partitions(work, connection.tenant, connection.id, stream.name)
        found = [part for part in known if matches(part.id, globs)]
        if not found and known:
            why = f"none of the {len(known)} partitions that are polled fits"
            raise Problem(Code.INVALID_ARGUMENT, field="partitions", why=why)
        if not found:
            why = "none of its partitions is known; choose the stream in the connection, and wait for the first look"
            raise Problem(Code.STATE_REFUSES, what=f"stream {stream.name}", wanted="backfilled", why=why)
        return found

    async def _present(self, tenant: str, past: Past) -> Schedule | None:
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            there = await orders.by_request(work, tenant, past.request_id)
        if not there:
            return None
        first = there[0]
        same = (first.key.resource, first.stream, first.window)
        if same != (past.connection, past.stream, (past.start, past.end)):
            raise Problem(Code.ALREADY_EXISTS, what=f"backfill {first.key.name} by this request")
        return first
