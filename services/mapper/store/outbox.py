"""What is stored and has still to be told. Across tenants: for the worker's role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from foundation.store.unit_of_work import Store
from services.mapper.names import subject_of

_PARTS = """
    select o.number, o.tenant, o.event, o.traceparent, e.severity, e.category, e.type, e.content
    from outbox o join events e on (e.tenant, e.id) = (o.tenant, o.event)
"""
_UNPUBLISHED = text(f"{_PARTS} where o.published_at is null order by o.queued limit :most")
_RECENT = text(f"""
    {_PARTS} where o.published_at > now() - make_interval(secs => :seconds) and o.number > :after
    order by o.number limit :most
""")
_PUBLISHED = text("""
    update outbox o set published_at = now(), number = t.number
    from unnest(cast(:tenants as text[]), cast(:events as uuid[]), cast(:numbers as bigint[]))
         as t (tenant, event, number)
    where (o.tenant, o.event) = (t.tenant, t.event)
""")


@dataclass(frozen=True, slots=True)
class Outgoing:
    tenant: str
    event: UUID
    subject: str
    traceparent: str
    content: bytes


class OutboxStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def unpublished(self, most: int) -> list[Outgoing]:
        """The oldest, whoever committed them and when: nothing here remembers how far it came."""
        async with self._store.across_tenants() as work:
            return [_outgoing(row) for row in await work.execute(_UNPUBLISHED, {"most": most})]

    async def published_within(self, time: timedelta, after: int, most: int) -> list[tuple[Outgoing, int]]:
        """With their numbers, in their order."""
        given = {"seconds": time.total_seconds(), "after": after, "most": most}
        async with self._store.across_tenants() as work:
            return [(_outgoing(row), row.number) for row in await work.execute(_RECENT, given)]

    async def mark(self, published: Sequence[tuple[Outgoing, int]]) -> None:
        """They are in the stream, under these numbers."""
        async with self._store.across_tenants() as work:
            columns = {
                "tenants": [outgoing.tenant for outgoing, _ in published],
                "events": [outgoing.event for outgoing, _ in published],
                "numbers": [number for _, number in published],
            }
            await work.execute(_PUBLISHED, columns)


def _outgoing(row: Any) -> Outgoing:
    subject = subject_of(row.tenant, row.severity, row.category, row.type)
    return Outgoing(row.tenant, row.event, subject, row.traceparent, row.content)
