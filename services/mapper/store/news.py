"""Events that are new: stored, findable by what they are about, and on their way to subscribers, or none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.mapper.stamping import StampedEvent

_EVENTS = text("""
    with input as (
        select * from unnest(
            cast(:tenants as text[]), cast(:ids as uuid[]), cast(:connections as text[]),
            cast(:categories as smallint[]), cast(:types as text[]), cast(:severities as smallint[]),
            cast(:occurred as timestamptz[]), cast(:stored as timestamptz[]), cast(:contents as bytea[]),
            cast(:traces as text[])
        ) with ordinality as t (
            tenant, id, connection, category, type, severity, occurred_at, stored_at, content, traceparent, n
        )
    ), told as (
        insert into events (tenant, id, connection, category, type, severity, occurred_at, stored_at, content)
        select tenant, id, connection, category, type, severity, occurred_at, stored_at, content
        from input order by n
        on conflict do nothing
        returning tenant, id
    ), queued as (
        insert into outbox (tenant, event, traceparent)
        select i.tenant, i.id, i.traceparent from input i join told using (tenant, id) order by i.n
    )
    insert into entities (tenant, kind, id, occurred_at, event)
    select distinct e.tenant, e.kind, e.id, e.occurred_at, e.event
    from unnest(
        cast(:entity_tenants as text[]), cast(:entity_kinds as text[]), cast(:entity_ids as text[]),
        cast(:entity_times as timestamptz[]), cast(:entity_events as uuid[])
    ) as e (tenant, kind, id, occurred_at, event)
    join told t on (t.tenant, t.id) = (e.tenant, e.event)
    on conflict do nothing
""")


@dataclass(frozen=True, slots=True)
class News:
    tenant: str
    connection: str
    """Empty for what the platform says about itself."""
    traceparent: str
    event: StampedEvent


async def tell(work: AsyncConnection, news: Sequence[News]) -> None:
    """An event that is known already is not told again."""
    once = list({(one.tenant, one.event.id): one for one in reversed(news)}.values())[::-1]
    if once:
        await work.execute(_EVENTS, _columns(once))


def _columns(news: Sequence[News]) -> dict[str, list[object]]:
    entities = [
        (one.tenant, entity.kind, entity.id, one.event.occurred_at, one.event.id)
        for one in news
        for entity in one.event.message.entities
    ]
    tenants, kinds, ids, times, owners = zip(*entities, strict=True) if entities else ((), (), (), (), ())
    return {
        "tenants": [one.tenant for one in news],
        "ids": [one.event.id for one in news],
        "connections": [one.connection for one in news],
        "categories": [one.event.message.category for one in news],
        "types": [one.event.message.type for one in news],
        "severities": [one.event.message.severity for one in news],
        "occurred": [one.event.occurred_at for one in news],
        "stored": [one.event.stored_at for one in news],
        "contents": [one.event.message.SerializeToString() for one in news],
        "traces": [one.traceparent for one in news],
        "entity_tenants": list(tenants),
        "entity_kinds": list(kinds),
        "entity_ids": list(ids),
        "entity_times": list(times),
        "entity_events": list(owners),
    }
