"""What is due, across tenants, with the worker's role: claimed by one replica at a time, and given back when it is lost.

Claims are made one after the other (an advisory lock), so that what one connection, one tenant and one replica may
have under way is exact. Rows that somebody is changing at that moment are skipped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.operations import store
from services.registry.operations.operation import Operation

LOOKED_AT = 500
"""Of a lane's operations that have an order, so many are looked at: a long tail behind one costs nobody else."""

_LOCK = text("select pg_advisory_xact_lock(hashtextextended('tieline registry: claim operations', 0))")

# The lanes (an action of a connection) that have something queued, one index probe for each. A lane that is held
# back gets one at a time, once its time has come: of those that failed least by their own fault the first, so that
# one that always fails is not the only one that is ever tried. Of those that wait for each other the first. Who has least
# under way is next, among tenants and then among the connections of each.
_DUE = text("""
    with recursive lanes as (
        (select tenant, connection, action from operations where state = 'queued'
         order by tenant, connection, action limit 1)
        union all
        select n.* from lanes l cross join lateral (
            select o.tenant, o.connection, o.action from operations o
            where o.state = 'queued' and (o.tenant, o.connection, o.action) > (l.tenant, l.connection, l.action)
            order by o.tenant, o.connection, o.action limit 1
        ) n
    ), busy as (
        select tenant, connection, action, count(*) as n from operations where state = 'running'
        group by tenant, connection, action
    ), free as (
        select l.*, h.held_until is not null as held,
            (select coalesce(sum(b.n), 0) from busy b where b.tenant = l.tenant) as of_tenant,
            (select coalesce(sum(b.n), 0) from busy b
             where b.tenant = l.tenant and b.connection = l.connection) as of_connection
        from lanes l left join operation_lanes h using (tenant, connection, action)
        where h.held_until is null or (h.held_until <= :now and not exists (
            select from busy b where (b.tenant, b.connection, b.action) = (l.tenant, l.connection, l.action)))
    ), candidates as (
        select f.of_tenant, f.of_connection, c.* from free f cross join lateral (
            select * from (
                (select o.tenant, o.id, o.connection, o.position, o.faults from operations o
                 where o.state = 'queued' and o.ordering_key = '' and o.due_time <= :now
                   and (o.tenant, o.connection, o.action) = (f.tenant, f.connection, f.action)
                 order by o.position limit :of_connection)
                union all
                (select o.tenant, o.id, o.connection, o.position, o.faults from (
                    select * from operations o
                    where o.state = 'queued' and o.ordering_key <> '' and o.due_time <= :now
                      and (o.tenant, o.connection, o.action) = (f.tenant, f.connection, f.action)
                    order by o.position limit :looked_at) o
                 where not exists (
                    select from operations e
                    where (e.tenant, e.connection, e.ordering_key) = (o.tenant, o.connection, o.ordering_key)
                      and e.ordering_key <> '' and e.position < o.position
                      and e.state in ('queued', 'running', 'pending', 'ambiguous'))
                 order by o.position limit :of_connection)
            ) o
            order by case when f.held then o.faults else 0 end, o.position
            limit case when f.held then 1 else :of_connection end
        ) c
    ), fitting as (
        select *, of_connection + row_number() over (partition by tenant, connection order by position) as turn
        from candidates
    ), fair as (
        select *, of_tenant + row_number() over (partition by tenant order by turn, position) as round
        from fitting where turn <= :of_connection
    )
    select tenant, id from fair where round <= :of_tenant order by round, turn, position limit :room
""")
_TAKE = text(f"""{store.READ}
    where state = 'queued' and tenant = any (cast(:tenants as text[])) and id = any (cast(:ids as text[]))
    order by position for update skip locked
""")
_ASKED = text(f"""{store.READ}
    where state in ('pending', 'ambiguous') and due_time <= :now and (owner is null or lease_time <= :now)
    order by due_time limit :room for update skip locked
""")
_LOST = text(f"""{store.READ}
    where state = 'running' and lease_time <= :now and id <> all (cast(:mine as text[]))
    order by lease_time limit :room for update skip locked
""")
_LATE = text(f"""{store.READ}
    where state = 'queued' and start_deadline <= :now and not uncertain
    order by start_deadline limit :room for update skip locked
""")
_RENEW = text("update operations set lease_time = :until where owner = :owner")
_GIVE_BACK = text("update operations set lease_time = :now where owner = :owner")
_HOLD = text("""
    insert into operation_lanes (tenant, connection, action, waits, held_until)
    values (:tenant, :connection, :action, :waits, :until)
    on conflict (tenant, connection, action) do update set waits = excluded.waits, held_until = excluded.held_until
""")
_WAITS = text("""
    select waits from operation_lanes where tenant = :tenant and connection = :connection and action = :action
    for update
""")
_OPEN = text("""
    delete from operation_lanes where tenant = :tenant and connection = :connection and action = :action
""")
# It works again: what waited for that need not wait any longer.
_HURRY = text("""
    update operations set due_time = :now where tenant = :tenant and connection = :connection
      and action = :action and state = 'queued' and away and due_time > :now
""")
_FORGET_KEYS = text("""
    update operations set key_held = false where (tenant, id) in (
        select tenant, id from operations where key_held and create_time < :before
          and state in ('succeeded', 'failed', 'cancelled', 'dead_lettered') limit :most)
""")
_REMOVE = text("""
    delete from operations where (tenant, id) in (
        select tenant, id from operations where state_time < :before
          and state in ('succeeded', 'failed', 'cancelled', 'dead_lettered') limit :most)
""")
_BY_CONNECTION = text("""
    select connection, count(*) filter (where state in ('queued', 'running', 'pending')) as waiting,
           count(*) filter (where state = 'ambiguous') as ambiguous
    from operations where state in ('queued', 'running', 'pending', 'ambiguous') group by connection
""")
_COUNT = text("""
    select state, count(*) as n, min(create_time) filter (where state = 'queued') as oldest from operations
    where state not in ('succeeded', 'failed', 'cancelled') group by state
""")


@dataclass(frozen=True, slots=True)
class Shares:
    """How many may be under way: in all, of one tenant, of one connection."""

    of_tenant: int
    of_connection: int


async def due(work: AsyncConnection, now: datetime, room: int, shares: Shares) -> list[Operation]:
    """What may begin now, locked; in its transaction nobody else claims anything."""
    await work.execute(_LOCK)
    scope = {
        "now": now,
        "room": room,
        "of_tenant": shares.of_tenant,
        "of_connection": shares.of_connection,
        "looked_at": LOOKED_AT,
    }
    chosen = (await work.execute(_DUE, scope)).all()
    if not chosen:
        return []
    keys = {"tenants": [row.tenant for row in chosen], "ids": [row.id for row in chosen]}
    return store.many(await work.execute(_TAKE, keys))


async def asked(work: AsyncConnection, now: datetime, room: int) -> list[Operation]:
    """Of which somebody has to be asked what became of them, locked."""
    return store.many(await work.execute(_ASKED, {"now": now, "room": room}))


async def lost(work: AsyncConnection, now: datetime, room: int, mine: Collection[str]) -> list[Operation]:
    """Those whose caller has not said for too long that it is there, locked. Not those that we know we are at."""
    return store.many(await work.execute(_LOST, {"now": now, "room": room, "mine": list(mine)}))


async def late(work: AsyncConnection, now: datetime, room: int) -> list[Operation]:
    """Those that had not begun by their deadline, locked."""
    return store.many(await work.execute(_LATE, {"now": now, "room": room}))


async def renew(work: AsyncConnection, owner: str, until: datetime) -> None:
    await work.execute(_RENEW, {"owner": owner, "until": until})


async def give_back(work: AsyncConnection, owner: str, now: datetime) -> None:
    """Whoever looks next finds them."""
    await work.execute(_GIVE_BACK, {"owner": owner, "now": now})


async def waits(work: AsyncConnection, operation: Operation) -> int:
    """How often in a row its lane was held back."""
    found: int | None = (await work.execute(_WAITS, _lane(operation))).scalar_one_or_none()
    return found or 0


async def hold(work: AsyncConnection, operation: Operation, waited: int, until: datetime) -> None:
    await work.execute(_HOLD, _lane(operation) | {"waits": waited, "until": until})


async def open_lane(work: AsyncConnection, operation: Operation, now: datetime) -> None:
    if (await work.execute(_OPEN, _lane(operation))).rowcount:
        await work.execute(_HURRY, _lane(operation) | {"now": now})


async def forget_keys(work: AsyncConnection, before: datetime, most: int) -> int:
    return (await work.execute(_FORGET_KEYS, {"before": before, "most": most})).rowcount


async def remove(work: AsyncConnection, before: datetime, most: int) -> int:
    return (await work.execute(_REMOVE, {"before": before, "most": most})).rowcount


async def counts(work: AsyncConnection) -> Sequence[Any]:
    """Of what has not come to its end, by state; with the oldest that is queued."""
    return (await work.execute(_COUNT)).all()


async def by_connection(work: AsyncConnection) -> Sequence[Any]:
    """Of each connection, by its name: how many wait or are under way, and how many are ambiguous."""
    return (await work.execute(_BY_CONNECTION)).all()


def _lane(operation: Operation) -> dict[str, Any]:
    return {
        "tenant": operation.tenant,
        "connection": operation.connection,
        "action": operation.action,
    }
