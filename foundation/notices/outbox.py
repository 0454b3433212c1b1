"""Notices that wait to be told. A service has them in its own schema, made by `table.py` in a migration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tieline.event.v1.event_pb2 import Event


@dataclass(frozen=True, slots=True)
class Waiting:
    number: int
    content: bytes


async def add(work: AsyncConnection, event: Event) -> None:
    await work.execute(
        sa.text("insert into notices (tenant, content) values (:tenant, :content)"),
        {"tenant": event.tenant.removeprefix("tenants/"), "content": event.SerializeToString()},
    )


async def waiting(work: AsyncConnection, most: int) -> list[Waiting]:
    """The oldest, of all tenants: for a worker's role."""
    rows = await work.execute(
        sa.text("select number, content from notices order by number limit :most"), {"most": most}
    )
    return [Waiting(row.number, row.content) for row in rows]


async def told(work: AsyncConnection, numbers: Collection[int]) -> None:
    await work.execute(
        sa.text("delete from notices where number = any (cast(:numbers as bigint[]))"),
        {"numbers": list(numbers)},
    )
