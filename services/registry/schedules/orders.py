"""The queries of people who look at schedules and order something."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.schedules.schedule import Key, Schedule, phase, schedule_id
from services.registry.schedules.store import read
from tieline.common.v1.delivery_pb2 import PRIORITY_BULK
from tieline.common.v1.failure_pb2 import FAILURE_KIND_CONFLICT, Failure
from tieline.plugin.v1.fetch_pb2 import Partition

_READ = """
    select s.*, k.epoch, k.store_time, c.state as connection_state,
        case when s.state in ('stopped', 'done') then s.state
             when s.owner is not null and s.lease_time > now() then 'running'
             when c.state in ('active', 'failing') then s.state else 'stopped' end as shown,
        case when s.kind = 'poll'
             then extract(epoch from now() - coalesce(s.last_success_time, k.last_record_time))::float8 end as lag
    from schedules s
    left join connections c on (c.tenant, c.id) = (s.tenant, s.connection)
    left join checkpoints k on (k.tenant, k.connection, k.stream, k.partition)
        = (s.tenant, 'tenants/' || s.tenant || '/connections/' || s.connection, s.place, s.partition)
"""
_ONE = "(s.tenant, s.connection, s.id) = (:tenant, :connection, :id)"
_GET = text(f"{_READ} where {_ONE}")
_LIST = text(f"""{_READ} where s.tenant = :tenant and (s.connection, s.id) > (:after_connection, :after_id)
    and (cast(:connection as text) = '' or s.connection = :connection)
    and (cast(:stream as text) = '' or s.stream = :stream)
    order by s.connection, s.id limit :limit""")
_BY_REQUEST = text(
    f"{_READ} where s.tenant = :tenant and s.request_id = :request_id order by s.connection, s.id"
)
_RUN = text(f"""
    update schedules s set next_time = now(), spread = true, failures = 0,
        again = s.owner is not null and s.lease_time > now(),
        state = case when s.state = 'stopped' then 'waiting' else s.state end,
        failure = case when s.state = 'stopped' then null else s.failure end
    where {_ONE} and not s.gone and (s.kind <> 'backfill' or s.state not in ('stopped', 'done'))
""")  # noqa: S608 - our own words
_PARTS = text("""
    select partition, title, slot_entry, partition_state from schedules s
    where (tenant, connection, stream) = (:tenant, :connection, :stream) and kind = 'poll' and not gone
    order by partition
""")
_START = text("""
    insert into schedules (tenant, connection, id, kind, stream, place, partition, title, slot_entry, partition_state,
                           phase, interval_seconds, gap_seconds, priority, next_time, backfill, window_start,
                           window_end, request_id)
    values (:tenant, :connection, :id, 'backfill', :stream, :place, :partition, :title, :slot_entry, :state,
            :phase, 0, 0, :priority, now(), :backfill, :start, :end, :request_id)
    on conflict do nothing
""")
_CANCEL = text("""
    update schedules set state = 'stopped', failure = :failure, end_time = now()
    where (tenant, connection, backfill) = (:tenant, :connection, :backfill) and state not in ('stopped', 'done')
""")


async def get(work: AsyncConnection, key: Key) -> Schedule | None:
    row = (await work.execute(_GET, _row(key))).mappings().one_or_none()
    return None if row is None else read(row)


async def listed(
    work: AsyncConnection, tenant: str, connection: str, stream: str, *, after: tuple[str, str], limit: int
) -> list[Schedule]:
    scope = {"tenant": tenant, "connection": connection, "stream": stream, "limit": limit}
    rows = await work.execute(_LIST, scope | {"after_connection": after[0], "after_id": after[1]})
    return [read(row) for row in rows.mappings()]


async def by_request(work: AsyncConnection, tenant: str, request_id: str) -> list[Schedule]:
    rows = await work.execute(_BY_REQUEST, {"tenant": tenant, "request_id": request_id})
    return [read(row) for row in rows.mappings()]


async def run(work: AsyncConnection, key: Key) -> bool:
    """False where it is over for good."""
    return bool((await work.execute(_RUN, _row(key))).rowcount)


async def partitions(work: AsyncConnection, tenant: str, connection: str, stream: str) -> list[Partition]:
    """Those that are polled."""
    rows = await work.execute(_PARTS, {"tenant": tenant, "connection": connection, "stream": stream})
    return [
        Partition(id=row.partition, title=row.title, slot_entry=row.slot_entry, state=row.partition_state)
        for row in rows
    ]


async def start(
    work: AsyncConnection,
    stream: Key,
    parts: Sequence[Partition],
    *,
    backfill: str,
    window: tuple[datetime, datetime],
    request_id: str,
) -> list[Key]:
    """A backfill of these parts. `stream` is the key of the stream's own schedule."""
    keys = []
    for part in parts:
        id_ = schedule_id(stream.id, part.id, backfill)
        keys.append(Key(stream.tenant, stream.connection, id_))
        row: dict[str, Any] = _row(keys[-1]) | {
            "stream": stream.id,
            "place": f"{stream.id}@{backfill}",
            "partition": part.id,
            "title": part.title,
            "slot_entry": part.slot_entry,
            "state": part.state,
            "phase": phase(stream.resource, id_),
            "priority": PRIORITY_BULK,
            "backfill": backfill,
            "start": window[0],
            "end": window[1],
            "request_id": request_id or None,
        }
        await work.execute(_START, row)
    return keys


async def cancel(work: AsyncConnection, key: Key, backfill: str) -> None:
    """All of its parts that have not ended."""
    failure = Failure(kind=FAILURE_KIND_CONFLICT, reason="CANCELLED", message="somebody ended it")
    told = {"failure": failure.SerializeToString(deterministic=True), "backfill": backfill}
    await work.execute(_CANCEL, told | {"tenant": key.tenant, "connection": key.connection})


def _row(key: Key) -> dict[str, str]:
    return {"tenant": key.tenant, "connection": key.connection, "id": key.id}
