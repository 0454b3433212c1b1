"""Deliveries going in: one statement for a mixed batch of many tenants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.store.unit_of_work import Store
from services.mapper.inbox import Arrival, Fence, Fenced, Kept, RepeatKey
from services.mapper.judging import tidy
from tieline.common.v1.failure_pb2 import Failure

# `position` is given in the order of insertion: deliveries of one call keep theirs.
_KEEP = text("""
    with input as (
        select * from unnest(
            cast(:tenants as text[]), cast(:ids as uuid[]), cast(:connections as text[]),
            cast(:channels as text[]), cast(:keys as text[]), cast(:partitions as smallint[]),
            cast(:priorities as smallint[]), cast(:received as timestamptz[]), cast(:event_types as text[]),
            cast(:content_types as text[]), cast(:queries as text[]), cast(:headers as bytea[]),
            cast(:bodies as bytea[]), cast(:hashes as bytea[]), cast(:verified as boolean[]),
            cast(:versions as bigint[]), cast(:accounts as text[]), cast(:traces as text[])
        ) with ordinality as t (
            tenant, id, connection, channel, key, partition, priority, received_at, event_type,
            content_type, query, headers, body, sha256, verified, secret_version, account_key, traceparent, n
        )
    ), kept as (
        insert into inbox (tenant, delivery, connection, channel, key, partition, priority, size, received_at)
        select tenant, id, connection, channel, key, partition, priority, octet_length(body), received_at
        from input order by n
        on conflict do nothing
        returning tenant, delivery
    ), originals as (
        insert into deliveries (
            tenant, id, connection, channel, key, event_type, content_type, query, headers, body, sha256,
            received_at, verified, secret_version, account_key, traceparent
        )
        select i.tenant, i.id, i.connection, i.channel, i.key, i.event_type, i.content_type, i.query, i.headers,
               i.body, i.sha256, i.received_at, i.verified, i.secret_version, i.account_key, i.traceparent
        from input i join kept k on (k.tenant, k.delivery) = (i.tenant, i.id)
    )
    select tenant, delivery from kept
""")

# A statement of its own: only a new snapshot shows what another transaction has committed meanwhile.
_FIND = text("""
    select i.connection, i.channel, i.key, i.delivery
    from unnest(cast(:tenants as text[]), cast(:connections as text[]), cast(:channels as text[]),
                cast(:keys as text[])) as t (tenant, connection, channel, key)
    join inbox i using (tenant, connection, channel, key)
""")

# The row stays locked until the records are there, so no higher number can come in between.
_FENCE = text("""
    insert into fences (tenant, connection, stream, partition, number)
    values (:tenant, :connection, :stream, :partition, :number)
    on conflict (tenant, connection, stream, partition) do update set number = excluded.number
        where fences.number <= excluded.number
    returning number
""")

_DIED = text("""
    update inbox set state = 3, reason = :reason, attempts = 1, finished_at = now(), events = '{}'
    where (tenant, delivery) = (:tenant, :delivery)
""")

_BURY = text("""
    insert into dead_letters (
        tenant, delivery, connection, channel, event_type, stage, reason, failure, diagnostics, attempts,
        plugin_version, state
    ) values (:tenant, :delivery, :connection, :channel, :event_type, :stage, :reason, :failure, '{}', 1, '', 1)
""")

_PRESSURE = text("""
    select priority, count(*) as waiting, extract(epoch from now() - min(received_at)) as oldest
    from inbox where state = 0 group by priority order by priority
""")

_BACKLOGS = text("""
    with waiting as (
        select connection, count(*) as waiting, min(received_at) as oldest
        from inbox where state = 0 and connection > :after group by connection
    ), dead as (
        select connection, count(*) as dead from dead_letters
        where state = 1 and connection > :after group by connection
    )
    select connection, coalesce(waiting, 0) as waiting, oldest, coalesce(dead, 0) as dead
    from waiting full join dead using (connection) order by connection limit :limit
""")


@dataclass(frozen=True, slots=True)
class Backlog:
    connection: str
    waiting: int
    oldest: datetime | None
    dead: int


class InboxStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, arrivals: Sequence[Arrival], fence: Fence | None = None) -> Mapping[RepeatKey, Kept]:
        tenants = {arrival.tenant for arrival in arrivals} | ({fence.tenant} if fence else set())
        async with self._store.unit_of_work(tenants=tenants) as work:
            if fence is not None and (await work.execute(_FENCE, asdict(fence))).first() is None:
                raise Fenced
            new = {(row.tenant, row.delivery) for row in await work.execute(_KEEP, _columns(arrivals))}
            kept = {
                arrival.repeat_key: Kept(arrival.id, is_new=True)
                for arrival in arrivals
                if (arrival.tenant, arrival.id) in new
            }
            dead = [arrival for arrival in arrivals if arrival.repeat_key in kept and arrival.failure]
            if dead:
                graves = [_grave(arrival) for arrival in dead]
                await work.execute(_DIED, graves)
                await work.execute(_BURY, graves)
            repeats = [arrival for arrival in arrivals if arrival.repeat_key not in kept]
            if repeats:
                kept |= await _find(work, repeats)
        return kept


async def _find(work: AsyncConnection, repeats: Sequence[Arrival]) -> dict[RepeatKey, Kept]:
    connections, channels, keys = zip(*(arrival.repeat_key for arrival in repeats), strict=True)
    found = await work.execute(
        _FIND,
        {
            "tenants": [arrival.tenant for arrival in repeats],
            "connections": list(connections),
            "channels": list(channels),
            "keys": list(keys),
        },
    )
    return {(row.connection, row.channel, row.key): Kept(row.delivery, is_new=False) for row in found}


class PressureStore:
    """How much waits, of all tenants together: for the worker's role."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def backlogs(self, after: str, limit: int) -> list[Backlog]:
        """Of connections of which something waits or has died, by name."""
        async with self._store.across_tenants() as work:
            rows = await work.execute(_BACKLOGS, {"after": after, "limit": limit})
            return [Backlog(row.connection, row.waiting, row.oldest, row.dead) for row in rows]

    async def waiting(self) -> list[tuple[int, int, float]]:
        """Class, how many, and the age of the oldest in seconds."""
        async with self._store.across_tenants() as work:
            rows = await work.execute(_PRESSURE)
            return [(row.priority, row.waiting, float(row.oldest)) for row in rows]


def _grave(arrival: Arrival) -> dict[str, object]:
    failure = tidy(arrival.failure or Failure())
    return {
        "tenant": arrival.tenant,
        "delivery": arrival.id,
        "connection": arrival.message.connection,
        "channel": arrival.message.webhook,
        "event_type": arrival.message.event_type,
        "stage": arrival.stage,
        "reason": failure.reason,
        "failure": failure.SerializeToString(),
    }


def _columns(arrivals: Sequence[Arrival]) -> dict[str, list[object]]:
    messages = [arrival.message for arrival in arrivals]
    return {
        "tenants": [arrival.tenant for arrival in arrivals],
        "ids": [arrival.id for arrival in arrivals],
        "partitions": [arrival.partition for arrival in arrivals],
        "priorities": [arrival.priority for arrival in arrivals],
        "received": [arrival.received_at for arrival in arrivals],
        "headers": [arrival.headers for arrival in arrivals],
        "hashes": [arrival.sha256 for arrival in arrivals],
        "traces": [arrival.traceparent for arrival in arrivals],
        "connections": [message.connection for message in messages],
        "channels": [message.webhook for message in messages],
        "keys": [message.provider_delivery_id for message in messages],
        "event_types": [message.event_type for message in messages],
        "content_types": [message.content_type for message in messages],
        "queries": [message.query for message in messages],
        "bodies": [message.body for message in messages],
        "verified": [message.verified for message in messages],
        "versions": [message.secret_version for message in messages],
        "accounts": [message.account_key for message in messages],
    }
