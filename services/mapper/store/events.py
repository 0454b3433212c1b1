"""Reading events and their originals, under the walls of one tenant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from foundation.store.unit_of_work import Store

_GET = text("select content from events where tenant = :tenant and id = :id")
_ORIGINAL = text("select * from deliveries where tenant = :tenant and id = :id")

# Every condition is an operator that row-level security may evaluate early (leakproof), or comes after
# tenant and time have chosen the rows.
_LIST = """
    select id, occurred_at, content from events e
    where tenant = :tenant and stored_at <= :cut and (occurred_at, id) < (:before_time, :before_id)
    {conditions}
    order by occurred_at desc, id desc limit :most
"""
_START = "and occurred_at >= :start"
_CATEGORIES = "and category = any (cast(:categories as smallint[]))"
_SEVERITY = "and severity >= :severity"
_CONNECTION = "and connection = :connection"
_TYPES = """
    and (type = any (cast(:types as text[])) or exists (
        select from unnest(cast(:below as text[])) p where starts_with(type, p)))
"""
_ENTITIES = """
    and not exists (
        select from unnest(cast(:kinds as text[]), cast(:ids as text[])) as w (kind, id)
        where not exists (
            select from entities n where n.tenant = e.tenant and n.kind = w.kind and n.id = w.id
            and n.occurred_at = e.occurred_at and n.event = e.id))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Between two events of the list, latest first."""

    time: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events. What is empty or absent does not choose."""

    start: datetime | None = None
    categories: Sequence[int] = ()
    types: Sequence[str] = ()
    severity: int = 0
    connection: str = ""
    entities: Sequence[tuple[str, str]] = ()

    def conditions(self) -> tuple[str, dict[str, object]]:
        parts: list[tuple[str, dict[str, object]]] = []
        if self.start is not None:
            parts.append((_START, {"start": self.start}))
        if self.categories:
            parts.append((_CATEGORIES, {"categories": list(self.categories)}))
        if self.types:
            below = [name.removesuffix("*") for name in self.types if name.endswith(".*")]
            parts.append((_TYPES, {"types": list(self.types), "below": below}))
        if self.severity:
            parts.append((_SEVERITY, {"severity": self.severity}))
        if self.connection:
            parts.append((_CONNECTION, {"connection": self.connection}))
        if self.entities:
            kinds, ids = zip(*self.entities, strict=True)
            parts.append((_ENTITIES, {"kinds": list(kinds), "ids": list(ids)}))
        values = {name: value for _, given in parts for name, value in given.items()}
        return " ".join(condition for condition, _ in parts), values


class EventStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, tenant: str, event: UUID) -> bytes | None:
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            content: bytes | None = await work.scalar(_GET, {"tenant": tenant, "id": event})
            return content

    async def list(
        self, tenant: str, wanted: Wanted, cut: datetime, before: Place, most: int
    ) -> list[tuple[Place, bytes]]:
        conditions, values = wanted.conditions()
        given = values | {
            "tenant": tenant,
            "cut": cut,
            "before_time": before.time,
            "before_id": before.id,
            "most": most,
        }
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            rows = await work.execute(text(_LIST.format(conditions=conditions)), given)
            return [(Place(row.occurred_at, row.id), row.content) for row in rows]

    async def original(self, tenant: str, delivery: UUID) -> Any | None:
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            return (await work.execute(_ORIGINAL, {"tenant": tenant, "id": delivery})).one_or_none()
