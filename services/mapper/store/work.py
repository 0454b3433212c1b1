"""The inbox as a queue: what is due next, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.store.unit_of_work import Store
from services.mapper.store.news import News, tell
from services.mapper.verdicts import Dead, Judged, Postponed, Skipped, Stored, Waiting

# First the head of every connection that has something waiting, one index probe for each, however much
# waits behind it. Of those that are due a share, so that there is something left for batches side by side;
# of each the next few. Bodies are read for what was chosen only.
_TAKE = text("""
    with recursive heads as (
        (select partition, tenant, connection, position, due_at from inbox
         where state = 0 order by partition, tenant, connection, position limit 1)
        union all
        select n.* from heads h cross join lateral (
            select i.partition, i.tenant, i.connection, i.position, i.due_at from inbox i
            where i.state = 0 and (i.partition, i.tenant, i.connection) > (h.partition, h.tenant, h.connection)
            order by i.partition, i.tenant, i.connection, i.position limit 1
        ) n
    ), due as (
        select partition, tenant, connection, position from heads
        where due_at <= now() and partition = any (cast(:partitions as smallint[]))
          and connection <> all (cast(:busy as text[]))
    ), chosen as (
        select * from due order by position limit greatest(8, (select count(*) / :shares from due))
    ), next as (
        select n.*, sum(n.size) over (order by n.position) - n.size as before
        from chosen d cross join lateral (
            select i.tenant, i.delivery, i.position, i.attempts, i.size from inbox i
            where i.state = 0 and i.partition = d.partition and i.tenant = d.tenant
              and i.connection = d.connection
            order by i.position limit :of_one
        ) n
        order by n.position limit :rows
    )
    select n.position, n.attempts, d.* from next n
    join deliveries d on (d.tenant, d.id) = (n.tenant, n.delivery)
    where n.before < :bytes
    order by n.position
""")

_LOCK = text("""
    select i.tenant, i.delivery from inbox i
    join unnest(cast(:tenants as text[]), cast(:deliveries as uuid[])) as t (tenant, delivery)
      using (tenant, delivery)
    where i.state = 0 order by i.position for update of i
""")

_FINISH = text("""
    update inbox i set state = t.state, reason = t.reason, attempts = t.attempts, finished_at = now(),
        events = t.events
    from (
        select tenant, delivery, state, reason, attempts,
               cast(string_to_array(nullif(events, ''), ',') as uuid[]) as events
        from unnest(
            cast(:tenants as text[]), cast(:deliveries as uuid[]), cast(:states as smallint[]),
            cast(:reasons as text[]), cast(:attempts as smallint[]), cast(:events as text[])
        ) as u (tenant, delivery, state, reason, attempts, events)
    ) t
    where (i.tenant, i.delivery) = (t.tenant, t.delivery)
""")

_BURY = text("""
    insert into dead_letters (
        tenant, delivery, connection, channel, event_type, stage, reason, failure, diagnostics, attempts,
        plugin_version, state
    ) values (
        :tenant, :delivery, :connection, :channel, :event_type, :stage, :reason, :failure, :diagnostics,
        :attempts, :plugin_version, 1
    )
    on conflict do nothing
""")

_POSTPONE = text("""
    update inbox i set attempts = t.attempts, reason = t.reason, due_at = now() + make_interval(secs => t.seconds)
    from unnest(
        cast(:tenants as text[]), cast(:deliveries as uuid[]), cast(:attempts as smallint[]),
        cast(:reasons as text[]), cast(:seconds as double precision[])
    ) as t (tenant, delivery, attempts, reason, seconds)
    where (i.tenant, i.delivery) = (t.tenant, t.delivery) and i.state = 0
""")

# Each number comes from the rows that it speaks of, so that a mistake in one cannot hide in another.
_ACCOUNT = text("""
    select (select count(*) from deliveries) as accepted,
           count(*) filter (where state = 0) as waiting,
           count(*) filter (where state = 1 and not exists (
               select from unnest(events) e
               where not exists (select from events v where v.tenant = inbox.tenant and v.id = e))) as stored,
           count(*) filter (where state = 2 and reason <> '') as skipped,
           count(*) filter (where state = 3 and exists (
               select from dead_letters l where (l.tenant, l.delivery) = (inbox.tenant, inbox.delivery))) as dead
    from inbox
""")

SHARES = 4
"""Batches that the connections which are due are spread over."""
_MOST = 32_000  # attempts are a small integer; something that waits for weeks stays at this
OF_ONE_CONNECTION = 100
"""So many of one connection at most in a batch: a busy one leaves room for the others."""


class QueueStore:
    """What is due, across tenants: for the worker's role."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(
        self, partitions: Collection[int], busy: Collection[str], *, rows: int, size: int
    ) -> list[Waiting]:
        """The oldest of each connection that is due and not busy; always its head and what follows directly."""
        given = {
            "partitions": list(partitions),
            "busy": list(busy),
            "of_one": OF_ONE_CONNECTION,
            "shares": SHARES,
            "rows": rows,
            "bytes": size,
        }
        async with self._store.across_tenants() as work:
            return [Waiting.of(row) for row in await work.execute(_TAKE, given)]


class WorkStore:
    """What became of deliveries, under the walls of exactly their tenants: for the service's role."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def finish(self, judged: Sequence[Judged]) -> list[Judged]:
        """One transaction for all of it. What somebody else has finished meanwhile is left out.

        The row lock and the state under it make this the only place where a delivery becomes events, once.
        """
        async with self._store.unit_of_work(tenants={waiting.tenant for waiting, _ in judged}) as work:
            keys = {
                "tenants": [waiting.tenant for waiting, _ in judged],
                "deliveries": [waiting.id for waiting, _ in judged],
            }
            ours = {(row.tenant, row.delivery) for row in await work.execute(_LOCK, keys)}
            judged = [
                (waiting, verdict) for waiting, verdict in judged if (waiting.tenant, waiting.id) in ours
            ]
            await _write(work, judged)
        return list(judged)

    async def account(self, tenants: Collection[str]) -> Mapping[str, int]:
        """What was accepted is stored, skipped, dead or waiting: four numbers that make up the first."""
        async with self._store.unit_of_work(tenants=tenants, read_only=True) as work:
            return dict((await work.execute(_ACCOUNT)).mappings().one())


async def _write(work: AsyncConnection, judged: Sequence[Judged]) -> None:
    await tell(
        work,
        [
            News(waiting.tenant, waiting.connection, waiting.traceparent, event)
            for waiting, verdict in judged
            for event in (verdict.events if isinstance(verdict, Stored) else ())
        ],
    )
    dead = [_grave(waiting, verdict) for waiting, verdict in judged if isinstance(verdict, Dead)]
    if dead:
        await work.execute(_BURY, dead)
    finished = [(waiting, verdict) for waiting, verdict in judged if not isinstance(verdict, Postponed)]
    if finished:
        await work.execute(_FINISH, _state_columns(finished))
    postponed = [(waiting, verdict) for waiting, verdict in judged if isinstance(verdict, Postponed)]
    if postponed:
        await work.execute(_POSTPONE, _due_columns(postponed))


def _state_columns(finished: Sequence[tuple[Waiting, Stored | Skipped | Dead]]) -> dict[str, list[object]]:
    return {
        "tenants": [waiting.tenant for waiting, _ in finished],
        "deliveries": [waiting.id for waiting, _ in finished],
        "states": [verdict.state for _, verdict in finished],
        "reasons": [verdict.reason for _, verdict in finished],
        "attempts": [waiting.attempts + 1 for waiting, _ in finished],
        "events": [",".join(str(event.id) for event in verdict.events) for _, verdict in finished],
    }


def _due_columns(postponed: Sequence[tuple[Waiting, Postponed]]) -> dict[str, list[object]]:
    return {
        "tenants": [waiting.tenant for waiting, _ in postponed],
        "deliveries": [waiting.id for waiting, _ in postponed],
        "attempts": [min(waiting.attempts + 1, _MOST) for waiting, _ in postponed],
        "reasons": [verdict.failure.reason for _, verdict in postponed],
        "seconds": [verdict.seconds for _, verdict in postponed],
    }


def _grave(waiting: Waiting, verdict: Dead) -> dict[str, object]:
    return {
        "tenant": waiting.tenant,
        "delivery": waiting.id,
        "connection": waiting.connection,
        "channel": waiting.channel,
        "event_type": waiting.event_type,
        "stage": verdict.stage,
        "reason": verdict.reason,
        "failure": verdict.failure.SerializeToString(),
        "diagnostics": [diagnostic.SerializeToString() for diagnostic in verdict.diagnostics],
        "attempts": waiting.attempts + 1,
        "plugin_version": verdict.plugin_version,
    }
