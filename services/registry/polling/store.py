"""The queries of checkpoints. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

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
    returning epoch, cursor, cursor_version
""")
_STORE = text("""
    update checkpoints set cursor = :cursor, cursor_version = :cursor_version, store_time = :now
    where tenant = :tenant and connection = :connection and stream = :stream and partition = :partition
      and epoch = :epoch
""")


async def claim(work: AsyncConnection, place: dict[str, str], owner: str, now: datetime) -> Any:
    """The row as it is now, under a new epoch."""
    return (await work.execute(_CLAIM, place | {"owner": owner, "now": now})).one()


async def keep(
    work: AsyncConnection, place: dict[str, str], epoch: int, checkpoint: Checkpoint, now: datetime
) -> bool:
    """False if another epoch has begun."""
    told = {"cursor": checkpoint.cursor, "cursor_version": checkpoint.cursor_version}
    return bool((await work.execute(_STORE, place | told | {"epoch": epoch, "now": now})).rowcount)
