"""Subscriptions and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from foundation.store.unit_of_work import Store

# `greatest`: an older acknowledgement never moves a cursor back.
_CREATE = text("""
    insert into subscriptions (tenant, id, title, filter, request_id, created_at)
    values (:tenant, :id, :title, :filter, :request_id, now())
    on conflict do nothing returning id
""")
_BEGIN = text("""
    insert into cursors (tenant, subscription, number) values (:tenant, :id, :number)
""")
_GET = text("""
    select s.*, c.number from subscriptions s join cursors c on (c.tenant, c.subscription) = (s.tenant, s.id)
    where s.tenant = :tenant and s.id = :id
""")
_MOVE = text("""
    update cursors set number = greatest(number, :number)
    where tenant = :tenant and subscription = :id returning number
""")


@dataclass(frozen=True, slots=True)
class Subscribed:
    tenant: str
    id: str
    title: str
    filter: bytes
    request_id: str
    created_at: datetime
    number: int
    """Everything up to this number of the stream has been dealt with."""

    @classmethod
    def of(cls, row: Any) -> Subscribed:
        return cls(**{name: getattr(row, name) for name in cls.__slots__})


class SubscriptionStore:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, tenant: str, identity: str, *, title: str, filter_: bytes, request_id: str, number: int
    ) -> bool:
        """Whether there was none of that id."""
        given = {"tenant": tenant, "id": identity}
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            created = await work.scalar(
                _CREATE, given | {"title": title, "filter": filter_, "request_id": request_id}
            )
            if created is not None:
                await work.execute(_BEGIN, given | {"number": number})
            return created is not None

    async def get(self, tenant: str, identity: str) -> Subscribed | None:
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            row = (await work.execute(_GET, {"tenant": tenant, "id": identity})).one_or_none()
            return None if row is None else Subscribed.of(row)

    async def move(self, tenant: str, identity: str, number: int) -> bool:
        """Whether there is such a subscription."""
        given = {"tenant": tenant, "id": identity, "number": number}
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            return await work.scalar(_MOVE, given) is not None
