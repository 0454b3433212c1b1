"""All queries of schedules. What time it is, the database says: whose clock is wrong polls no sooner and no longer.

A schedule is somebody's while its lease runs. Who claims counts its `turn` up and names it in what is written at
the end, so that a sleeper whose lease ran out changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.schedules.planning import Busy, Due, Next
from services.registry.schedules.schedule import OVER, Key, Kind, Schedule, State
from tieline.common.v1.delivery_pb2 import Priority
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT, Failure
from tieline.plugin.v1.fetch_pb2 import FetchDataRequest, Partition

CATCH_UP_SECONDS = 30.0
CANDIDATES = 500

_WAITS = "s.state in ('waiting', 'throttled', 'failing')"
_FREE = "(s.lease_time is null or s.lease_time <= now())"
_AWAKE = "c.state in ('active', 'failing') and c.applied_revision > 0"
_OF_CONNECTION = "join connections c on (c.tenant, c.id) = (s.tenant, s.connection)"

_BUSY = text("""
    select tenant, connection, kind = 'backfill' as bulk, count(*) as n from schedules
    where owner is not null and lease_time > now() group by 1, 2, 3
""")
# After a standstill everybody is overdue. Once each is given a moment of its own in the near future.
_SPREAD = text(f"""
    with overdue as (
        select s.tenant, s.connection, s.id from schedules s {_OF_CONNECTION}
        where {_WAITS} and {_FREE} and {_AWAKE} and not s.spread and s.kind <> 'backfill' and s.next_time < now()
          and s.next_time < now() - make_interval(secs => greatest(s.interval_seconds, 1))
        for update of s skip locked
    )
    update schedules s set spread = true,
        next_time = now() + make_interval(secs => s.phase * least(s.interval_seconds, :window))
    from overdue o where (s.tenant, s.connection, s.id) = (o.tenant, o.connection, o.id)
""")  # noqa: S608 - our own words
_DUE = text(f"""
    select * from (
        select s.tenant, s.connection, s.id, c.plugin, s.kind = 'backfill' as bulk,
               extract(epoch from now() - s.next_time)::float8 as late,
               row_number() over (partition by s.tenant, s.connection, s.kind = 'backfill' order by s.next_time) as place
        from schedules s {_OF_CONNECTION}
        where {_WAITS} and {_FREE} and {_AWAKE} and s.next_time <= now() and c.plugin = any(cast(:plugins as text[]))
    ) ranked where place <= :each order by place, late desc limit :limit
""")  # noqa: S608 - our own words
_CLAIM = text(f"""
    with mine as (
        select s.tenant, s.connection, s.id, extract(epoch from now() - s.next_time)::float8 as late
        from schedules s
        join unnest(cast(:tenants as text[]), cast(:connections as text[]), cast(:ids as text[]))
             as wanted (tenant, connection, id) using (tenant, connection, id)
        where {_WAITS} and {_FREE} and s.next_time <= now()
        for update of s skip locked
    )
    update schedules s set owner = :owner, lease_time = now() + make_interval(secs => :lease), turn = s.turn + 1,
        last_start_time = now(), again = false, spread = false
    from mine m where (s.tenant, s.connection, s.id) = (m.tenant, m.connection, m.id)
    returning s.*, m.late
""")  # noqa: S608 - our own words
_RENEW = text("""
    update schedules set lease_time = now() + make_interval(secs => :lease)
    where owner = :owner and lease_time > now() and state not in ('stopped', 'done') returning tenant, connection, id
""")
_FINISH = text("""
    update schedules set owner = null, lease_time = null, records = records + :records,
        state = case when state = 'stopped' then state else cast(:state as text) end,
        failure = case when state = 'stopped' then failure else cast(:failure as bytea) end,
        failures = :failures,
        last_success_time = case when cast(:caught_up as boolean) then now() else last_success_time end,
        end_time = case when cast(:state as text) = 'done' then now() else end_time end,
        next_time = case when again then now() else now() + make_interval(secs => :delay) end
    where (tenant, connection, id) = (:tenant, :connection, :id) and owner = :owner and turn = :turn
""")
_RELEASE = text("update schedules set owner = null, lease_time = null where owner = :owner")
_SWEEP = text("""
    delete from schedules where kind = 'backfill' and state in ('done', 'stopped')
      and end_time < now() - make_interval(days => :days) returning tenant, connection, place, partition
""")
_FORGET_PLACES = text("""
    delete from checkpoints k using unnest(cast(:tenants as text[]), cast(:connections as text[]),
        cast(:places as text[]), cast(:partitions as text[])) as gone (tenant, connection, place, partition)
    where (k.tenant, k.connection, k.stream, k.partition) = (gone.tenant, gone.connection, gone.place, gone.partition)
""")
_STATES = text("""
    select case when lease_time > now() then 'running' else state end as state, count(*) as n
    from schedules group by 1
""")
_REMOVE = [
    text(statement)
    for statement in (
        "delete from schedules where tenant = :tenant and connection = :id",
        "delete from plans where tenant = :tenant and connection = :id",
        "delete from checkpoints where tenant = :tenant and connection = :name",
    )
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A schedule whose turn it is, here."""

    key: Key
    kind: Kind
    stream: str
    partition: Partition
    priority: Priority.ValueType
    interval: float
    gap: float
    phase: float
    late: float
    failures: int
    turn: int
    backfill: str
    window: FetchDataRequest.Window | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a poll came to, as far as it is counted."""

    records: int = 0
    caught_up: bool = False


async def busy(work: AsyncConnection) -> Busy:
    found = Busy()
    for row in await work.execute(_BUSY):
        found.add(row.tenant, row.connection, bulk=row.bulk, count=row.n)
    return found


async def spread(work: AsyncConnection) -> int:
    """How many were overdue by more than their interval, and have a time of their own now."""
    return int((await work.execute(_SPREAD, {"window": CATCH_UP_SECONDS})).rowcount)


async def due(work: AsyncConnection, plugins: Collection[str], each: int) -> list[Due]:
    """Of each connection the few that have waited longest."""
    asked = {"plugins": list(plugins), "each": each, "limit": CANDIDATES}
    rows = await work.execute(_DUE, asked)
    return [Due(row.tenant, row.connection, row.id, row.plugin, row.bulk, row.late) for row in rows]


async def claim(work: AsyncConnection, chosen: Sequence[Due], owner: str, lease: float) -> list[Claimed]:
    """Those of them that nobody else was quicker to take."""
    asked = {
        "tenants": [one.tenant for one in chosen],
        "connections": [one.connection for one in chosen],
        "ids": [one.id for one in chosen],
        "owner": owner,
        "lease": lease,
    }
    return [_claimed(row) for row in (await work.execute(_CLAIM, asked)).mappings()]


async def renew(work: AsyncConnection, owner: str, lease: float) -> set[Key]:
    """What is still ours; a lease that has run out is gone, even if nobody took it yet."""
    return {Key(*row) for row in await work.execute(_RENEW, {"owner": owner, "lease": lease})}


async def finish(work: AsyncConnection, one: Claimed, owner: str, found: Found, then: Next) -> bool:
    """False if it was not ours any more."""
    told = {
        **_key(one.key),
        "owner": owner,
        "turn": one.turn,
        "records": found.records,
        "caught_up": found.caught_up,
        "state": then.state.value,
        "failure": None if then.failure is None else then.failure.SerializeToString(deterministic=True),
        "failures": then.failures,
        "delay": then.delay,
    }
    return bool((await work.execute(_FINISH, told)).rowcount)


async def release(work: AsyncConnection, owner: str) -> None:
    """Whoever is next may take them at once."""
    await work.execute(_RELEASE, {"owner": owner})


async def sweep(work: AsyncConnection, days: int) -> None:
    """Backfills that ended long ago, and how far they had read."""
    rows = (await work.execute(_SWEEP, {"days": days})).all()
    if rows:
        tenants, connections, places, partitions = zip(*rows, strict=True)
        gone = {"tenants": tenants, "connections": connections, "places": places, "partitions": partitions}
        await work.execute(_FORGET_PLACES, {name: list(values) for name, values in gone.items()})


async def states(work: AsyncConnection) -> Mapping[str, int]:
    return {row.state: row.n for row in await work.execute(_STATES)}


async def remove(work: AsyncConnection, tenant: str, connection: str) -> None:
    """All that is known of a connection's polls; checkpoints name it in full."""
    scope = {"tenant": tenant, "id": connection, "name": f"tenants/{tenant}/connections/{connection}"}
    for statement in _REMOVE:
        wanted = {name: scope[name] for name in statement.compile().params}
        await work.execute(statement, wanted)


def partition_of(row: Any) -> Partition:
    return Partition(
        id=row["partition"],
        title=row["title"],
        slot_entry=row["slot_entry"],
        state=row["partition_state"],
    )


def window_of(row: Any) -> tuple[datetime, datetime] | None:
    start, end = row["window_start"], row["window_end"]
    return None if start is None else (start, end)


def read(row: Any) -> Schedule:
    """A row as `orders` reads it, with its connection and its checkpoint."""
    return Schedule(
        key=Key(row["tenant"], row["connection"], row["id"]),
        kind=Kind(row["kind"]),
        stream=row["stream"],
        partition=partition_of(row),
        state=State(row["shown"]),
        failure=_why(row),
        gone=row["gone"],
        interval=row["interval_seconds"],
        records=row["records"],
        next_time=row["next_time"],
        last_start_time=row["last_start_time"],
        last_success_time=row["last_success_time"],
        window=window_of(row),
        backfill=row["backfill"] or "",
        fence=row["epoch"] or 0,
        checkpoint_time=row["store_time"],
        lag=row["lag"],
    )


def _why(row: Any) -> Failure | None:
    if row["shown"] == State.STOPPED and row["state"] not in OVER:
        why = f"the connection is {row['connection_state'] or 'gone'}; it goes on where it was"
        return Failure(kind=FAILURE_KIND_TRANSIENT, reason="CONNECTION_RESTS", message=why)
    return None if row["failure"] is None else Failure.FromString(row["failure"])


def _claimed(row: Any) -> Claimed:
    window = None
    if (span := window_of(row)) is not None:
        window = FetchDataRequest.Window()
        window.start.FromDatetime(span[0])
        window.end.FromDatetime(span[1])
    return Claimed(
        key=Key(row["tenant"], row["connection"], row["id"]),
        kind=Kind(row["kind"]),
        stream=row["stream"],
        partition=partition_of(row),
        priority=row["priority"],
        interval=row["interval_seconds"],
        gap=row["gap_seconds"],
        phase=row["phase"],
        late=row["late"],
        failures=row["failures"],
        turn=row["turn"],
        backfill=row["backfill"] or "",
        window=window,
    )


def _key(key: Key) -> dict[str, str]:
    return {"tenant": key.tenant, "connection": key.connection, "id": key.id}
