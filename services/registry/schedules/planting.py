"""The queries that bring schedules in line with what a connection wants; each is right however often it is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.schedules.schedule import Kind, phase, schedule_id
from services.registry.schedules.wishes import LIST_SECONDS, Wish
from tieline.common.v1.failure_pb2 import FAILURE_KIND_NOT_FOUND, Failure
from tieline.plugin.v1.fetch_pb2 import Partition

FIRST_SECONDS = 10.0
"""New schedules begin within this time, and not all in one moment."""

# An older view of the connection than the one acted upon changes nothing, and what is being deleted stays gone.
_TAKE = text("""
    insert into plans (tenant, connection, revision, digest)
    select c.tenant, c.id, :revision, :digest from connections c
    where (c.tenant, c.id) = (:tenant, :connection) and c.state <> 'deleting'
    on conflict (tenant, connection) do update set revision = excluded.revision, digest = excluded.digest
        where plans.revision <= excluded.revision and plans.digest <> excluded.digest
    returning revision
""")
_PLANNED = text("select tenant, connection from plans")
_DROP = text("""
    delete from schedules where (tenant, connection) = (:tenant, :connection) and kind <> 'backfill'
      and (stream <> all(cast(:streams as text[])) or (stream = any(cast(:whole as text[])) and partition <> '')
           or (partition = '' and (stream = any(cast(:whole as text[]))) is distinct from (kind = 'poll')))
""")
_PUT = text("""
    insert into schedules (tenant, connection, id, kind, stream, place, phase, interval_seconds, gap_seconds,
                           priority, next_time)
    values (:tenant, :connection, :id, :kind, :stream, :stream, :phase, :interval, :gap, :priority,
            now() + make_interval(secs => :first))
    on conflict (tenant, connection, id) do update set kind = excluded.kind,
        interval_seconds = excluded.interval_seconds, gap_seconds = excluded.gap_seconds,
        priority = excluded.priority, again = excluded.kind = 'list',
        failures = 0, next_time = case
            when excluded.kind = 'list' or schedules.state = 'failing' then now()
            when schedules.interval_seconds > excluded.interval_seconds
                then least(schedules.next_time, now() + make_interval(secs => excluded.interval_seconds))
            else schedules.next_time end
""")
_PARTS = text("""
    select partition from schedules
    where (tenant, connection, stream) = (:tenant, :connection, :stream) and kind = 'poll' and partition <> ''
""")
_ADJUST_PARTS = text("""
    update schedules set interval_seconds = :interval, gap_seconds = :gap, priority = :priority, failures = 0,
        next_time = case when state = 'failing' then now()
            when interval_seconds > :interval
                then least(next_time, now() + make_interval(secs => :interval))
            else next_time end
    where (tenant, connection, stream) = (:tenant, :connection, :stream) and kind = 'poll' and partition <> ''
""")
_PUT_PARTS = text("""
    insert into schedules (tenant, connection, id, kind, stream, place, partition, title, slot_entry,
                           partition_state, phase, interval_seconds, gap_seconds, priority, next_time)
    select :tenant, :connection, id, 'poll', :stream, :stream, partition, title, slot_entry, state, phase,
           :interval, :gap, :priority, now() + make_interval(secs => phase * :first)
    from unnest(cast(:ids as text[]), cast(:partitions as text[]), cast(:titles as text[]), cast(:entries as text[]),
                cast(:states as bytea[]), cast(:phases as float8[])) as t (id, partition, title, slot_entry, state, phase)
    on conflict (tenant, connection, id) do update set title = excluded.title,
        slot_entry = excluded.slot_entry, partition_state = excluded.partition_state, gone = false,
        state = case when schedules.gone then 'waiting' else schedules.state end,
        failure = case when schedules.gone then null else schedules.failure end,
        next_time = case when schedules.gone then excluded.next_time else schedules.next_time end
    where schedules.gone or (schedules.title, schedules.slot_entry, schedules.partition_state)
        is distinct from (excluded.title, excluded.slot_entry, excluded.partition_state)
""")
_DROP_PARTS = text("""
    delete from schedules where (tenant, connection, stream) = (:tenant, :connection, :stream) and kind = 'poll'
      and partition = any(cast(:partitions as text[]))
""")
_GONE = text("""
    update schedules set state = 'stopped', gone = true, failure = :failure
    where (tenant, connection, stream) = (:tenant, :connection, :stream) and kind = 'poll' and not gone
      and partition <> '' and partition <> all(cast(:partitions as text[]))
      and slot_entry <> all(cast(:broken as text[]))
""")


async def planned(work: AsyncConnection) -> set[str]:
    """Connections that have schedules, or had some."""
    return {f"tenants/{tenant}/connections/{id_}" for tenant, id_ in await work.execute(_PLANNED)}


async def plant(
    work: AsyncConnection, tenant: str, connection: str, wanted: Sequence[Wish], *, revision: int, digest: str
) -> bool:
    """Make it so; False if it is so already, or somebody knows better."""
    owner = {"tenant": tenant, "connection": connection}
    took = await work.execute(_TAKE, {**owner, "revision": revision, "digest": digest})
    if took.one_or_none() is None:
        return False
    whole = [wish.stream for wish in wanted if wish.kind is Kind.POLL]
    streams = [wish.stream for wish in wanted]
    await work.execute(_DROP, {**owner, "streams": streams, "whole": whole})
    for wish in wanted:
        await _put(work, owner, wish)
    return True


async def _put(work: AsyncConnection, owner: dict[str, str], wish: Wish) -> None:
    id_ = schedule_id(wish.stream)
    share = phase("/".join(owner.values()), id_)
    row: dict[str, Any] = {**owner, "id": id_, "kind": wish.kind.value, "stream": wish.stream, "phase": share}
    lists = wish.kind is Kind.LIST
    first = 0.0 if lists else share * min(wish.interval, FIRST_SECONDS)
    terms = {
        "interval": LIST_SECONDS if lists else wish.interval,
        "gap": 0.0 if lists else wish.gap,
        "first": first,
    }
    await work.execute(_PUT, {**row, **terms, "priority": wish.priority})
    if lists:
        stream = {**owner, "stream": wish.stream}
        await work.execute(_ADJUST_PARTS, {**stream, **_terms(wish)})
        parts = [one for (one,) in await work.execute(_PARTS, stream)]
        await _drop(work, stream, [one for one in parts if not wish.takes(one)])


async def put_parts(
    work: AsyncConnection,
    tenant: str,
    connection: str,
    wish: Wish,
    *,
    listed: Iterable[Partition],
    broken: Collection[str],
) -> int:
    """What a complete listing told. Parts of entries that could not be listed stay as they are."""
    stream = {"tenant": tenant, "connection": connection, "stream": wish.stream}
    every = list(listed)
    taken = [one for one in every if wish.takes(one.id)]
    ids = [schedule_id(wish.stream, one.id) for one in taken]
    row = {
        "ids": ids,
        "partitions": [one.id for one in taken],
        "titles": [_text(one.title) for one in taken],
        "entries": [one.slot_entry for one in taken],
        "states": [one.state for one in taken],
        "phases": [phase(f"{tenant}/{connection}", id_) for id_ in ids],
        "first": min(wish.interval, FIRST_SECONDS),
    }
    await work.execute(_PUT_PARTS, {**stream, **_terms(wish), **row})
    await _drop(work, stream, [one.id for one in every if not wish.takes(one.id)])
    why = "the provider does not list this part any more"
    gone = Failure(kind=FAILURE_KIND_NOT_FOUND, reason="PARTITION_GONE", message=why)
    told = {"failure": gone.SerializeToString(deterministic=True), "partitions": [one.id for one in every]}
    await work.execute(_GONE, {**stream, **told, "broken": list(broken)})
    return len(taken)


async def _drop(work: AsyncConnection, stream: dict[str, str], partitions: list[str]) -> None:
    if partitions:
        await work.execute(_DROP_PARTS, {**stream, "partitions": partitions})


def _terms(wish: Wish) -> dict[str, Any]:
    return {"interval": wish.interval, "gap": wish.gap, "priority": wish.priority}


def _text(title: str) -> str:
    return title.replace("\0", "")[:256]
