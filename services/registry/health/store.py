"""All queries of health: with the worker's role, except where a tenant is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.identity.names import tenant_of
from services.registry.health.rules import Health
from tieline.common.v1.failure_pb2 import Failure

_KNOW = text("""
    insert into connection_health (tenant, connection, health_time, next_check_time)
    select tenant, connection, cast(:now as timestamptz),
        cast(:now as timestamptz) + make_interval(secs => random() * cast(:spread as double precision))
    from unnest(cast(:tenants as text[]), cast(:connections as text[])) as u (tenant, connection)
    on conflict do nothing
""")
_ROWS = text("""
    select connection, health, health_time, instance, failure, check_time, misses, last_event_time
    from connection_health
""")
_TURNED = text("""
    update connection_health h set health = t.health, health_time = t.time
    from unnest(
        cast(:tenants as text[]), cast(:connections as text[]), cast(:healths as smallint[]),
        cast(:times as timestamptz[])
    ) as t (tenant, connection, health, time)
    where (h.tenant, h.connection) = (t.tenant, t.connection) and h.health <> t.health
""")
_EVENTS = text("""
    update connection_health h set last_event_time = t.time
    from unnest(cast(:tenants as text[]), cast(:connections as text[]), cast(:times as timestamptz[]))
        as t (tenant, connection, time)
    where (h.tenant, h.connection) = (t.tenant, t.connection)
      and (h.last_event_time is null or h.last_event_time < t.time)
""")
_CLAIM = text("""
    with due as (
        select tenant, connection from connection_health where next_check_time <= :now
        order by next_check_time limit :limit for update skip locked
    )
    update connection_health h set next_check_time = :until from due
    where (h.tenant, h.connection) = (due.tenant, due.connection)
    returning h.connection, h.misses
""")
_CHECKED = text("""
    update connection_health set instance = :instance, failure = :failure, check_time = :now,
        next_check_time = :next, misses = :misses
    where tenant = :tenant and connection = :connection
""")
_MISSED = text("""
    update connection_health set misses = misses + 1 where tenant = :tenant and connection = :connection
    returning misses
""")
_LATER = text("""
    update connection_health set next_check_time = :next, misses = :misses
    where tenant = :tenant and connection = :connection
""")
_REPORT = text("""
    insert into health_reports (tenant, connection, replica, content, report_time)
    select tenant, connection, cast(:replica as text), content, cast(:now as timestamptz)
    from unnest(cast(:tenants as text[]), cast(:connections as text[]), cast(:contents as bytea[]))
        as u (tenant, connection, content)
    on conflict (tenant, connection, replica) do update
        set content = excluded.content, report_time = excluded.report_time
""")
_WITHDRAW = text("""
    delete from health_reports where replica = :replica and connection = any (cast(:connections as text[]))
""")
_STALE = text("delete from health_reports where report_time < :before")
_OTHERS = text(
    "select connection, content from health_reports where replica <> :replica and report_time >= :since"
)
_ALARMS = text("select subject, kind, tenant from alarms")
_RAISE = text("""
    insert into alarms (tenant, subject, kind, since) values (:tenant, :subject, :kind, :now)
    on conflict do nothing returning since
""")
_CLEAR = text("""
    delete from alarms where tenant = :tenant and subject = :subject and kind = :kind returning since
""")
_FORGET = (
    text("delete from connection_health where tenant = :tenant and connection = :connection"),
    text("delete from health_reports where tenant = :tenant and connection = :connection"),
    text("delete from alarms where tenant = :tenant and subject = :connection"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    health: Health
    health_time: datetime
    instance: Health
    failure: Failure | None
    check_time: datetime | None
    misses: int
    last_event_time: datetime | None


@dataclass(frozen=True, slots=True)
class AlarmKey:
    tenant: str
    subject: str
    kind: str


async def know(work: AsyncConnection, connections: Collection[str], now: datetime, spread: float) -> None:
    """Connections that have no row yet; their first checks are spread over so many seconds."""
    await work.execute(_KNOW, {**_columns(connections), "now": now, "spread": spread})


async def rows(work: AsyncConnection) -> dict[str, Row]:
    return {
        row["connection"]: Row(
            health=Health(row["health"]),
            health_time=row["health_time"],
            instance=Health(row["instance"]),
            failure=None if row["failure"] is None else Failure.FromString(row["failure"]),
            check_time=row["check_time"],
            misses=row["misses"],
            last_event_time=row["last_event_time"],
        )
        for row in (await work.execute(_ROWS)).mappings()
    }


async def turned(work: AsyncConnection, found: Mapping[str, tuple[Health, datetime]]) -> None:
    """They are of another health, and since when."""
    healths = [int(health) for health, _ in found.values()]
    times = [time for _, time in found.values()]
    await work.execute(_TURNED, {**_columns(found), "healths": healths, "times": times})


async def had_events(work: AsyncConnection, found: Mapping[str, datetime]) -> None:
    await work.execute(_EVENTS, {**_columns(found), "times": list(found.values())})


async def claim(work: AsyncConnection, now: datetime, until: datetime, limit: int) -> dict[str, int]:
    """Connections whose check is due, and how many failed in a row; nobody else gets them before `until`."""
    result = await work.execute(_CLAIM, {"now": now, "until": until, "limit": limit})
    return {row.connection: row.misses for row in result}


async def checked(
    work: AsyncConnection,
    connection: str,
    instance: Health,
    failure: Failure | None,
    *,
    now: datetime,
    again: datetime,
    misses: int,
) -> None:
    told = None if failure is None else failure.SerializeToString(deterministic=True)
    found = {"instance": int(instance), "failure": told, "now": now, "next": again, "misses": misses}
    await work.execute(_CHECKED, _one(connection) | found)


async def later(work: AsyncConnection, connection: str, again: datetime, misses: int) -> None:
    """Nothing was found out."""
    await work.execute(_LATER, _one(connection) | {"next": again, "misses": misses})


async def missed(work: AsyncConnection, connection: str) -> int:
    """One more in a row: how many there are now."""
    row = (await work.execute(_MISSED, _one(connection))).one_or_none()
    return 1 if row is None else row.misses


async def report(work: AsyncConnection, replica: str, contents: Mapping[str, bytes], now: datetime) -> None:
    told = {"replica": replica, "contents": list(contents.values()), "now": now}
    await work.execute(_REPORT, {**_columns(contents), **told})


async def withdraw(work: AsyncConnection, replica: str, connections: Collection[str]) -> None:
    await work.execute(_WITHDRAW, {"replica": replica, "connections": list(connections)})


async def others(
    work: AsyncConnection, replica: str, now: datetime, fresh: timedelta
) -> Sequence[tuple[str, bytes]]:
    """What the other replicas said lately; what is older is removed."""
    await work.execute(_STALE, {"before": now - 4 * fresh})
    result = await work.execute(_OTHERS, {"replica": replica, "since": now - fresh})
    return [(row.connection, row.content) for row in result]


async def alarms(work: AsyncConnection) -> set[AlarmKey]:
    return {AlarmKey(row.tenant, row.subject, row.kind) for row in await work.execute(_ALARMS)}


async def raise_alarm(work: AsyncConnection, key: AlarmKey, now: datetime) -> datetime | None:
    """Since when it holds; None if somebody has raised it already."""
    told = {"tenant": key.tenant, "subject": key.subject, "kind": key.kind, "now": now}
    row = (await work.execute(_RAISE, told)).one_or_none()
    return None if row is None else row.since


async def clear_alarm(work: AsyncConnection, key: AlarmKey) -> datetime | None:
    """Since when it held; None if somebody has cleared it already."""
    told = {"tenant": key.tenant, "subject": key.subject, "kind": key.kind}
    row = (await work.execute(_CLEAR, told)).one_or_none()
    return None if row is None else row.since


async def forget(work: AsyncConnection, connection: str) -> None:
    for statement in _FORGET:
        await work.execute(statement, _one(connection))


def _one(connection: str) -> dict[str, object]:
    return {"tenant": tenant_of(connection), "connection": connection}


def _columns(connections: Collection[str]) -> dict[str, object]:
    return {"tenants": [tenant_of(name) for name in connections], "connections": list(connections)}
