"""The queries of checkpoints. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tieline.plugin.v1.fetch_pb2 import Checkpoint

_CLAIM = text("""
    insert into checkpoints (tenant, connection, stream, partition, epoch, owner, claim_time)
    values (:tenant, :connection, :stream, :partition, 1, :owner, :now)
    on conflict (tenant, connection, stream, partition) do update
        set epoch = checkpoints.epoch + 1, owner = excluded.owner, claim_time = excluded.claim_time
    returning epoch, cursor, cursor_version, start_time, last_record_time, store_time
""")
_STORE = text("""
    update checkpoints set cursor = :cursor, cursor_version = :cursor_version, store_time = :now,
        start_time = cast(:start_time as timestamptz), last_record_time = greatest(last_record_time, cast(:newest as timestamptz))
    where tenant = :tenant and connection = :connection and stream = :stream and partition = :partition
      and epoch = :epoch
""")


async def claim(work: AsyncConnection, place: dict[str, str], owner: str, now: datetime) -> Any:
    """The row as it is now, under a new epoch."""
    return (await work.execute(_CLAIM, place | {"owner": owner, "now": now})).one()


@dataclass(frozen=True, slots=True)
class Reached:
    """How far it was read, and what is known beside that."""

    checkpoint: Checkpoint
    start_time: datetime | None = None
    newest: datetime | None = None


async def keep(
    work: AsyncConnection, place: dict[str, str], epoch: int, reached: Reached, now: datetime
) -> bool:
    """False if another epoch has begun."""
    told: dict[str, Any] = {
        "cursor": reached.checkpoint.cursor,
        "cursor_version": reached.checkpoint.cursor_version,
        "start_time": reached.start_time,
        "newest": reached.newest,
    }
    return bool((await work.execute(_STORE, place | told | {"epoch": epoch, "now": now})).rowcount)
