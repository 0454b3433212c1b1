"""All queries of flags. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.flags.flag import Flag
from tieline.registry.v1.flags_pb2 import Flag as Message

_READ = "select id, content, version, removed, author from flags"
_GET = text(f"{_READ} where id = :id and not removed")
_BY_REQUEST = text(f"{_READ} where request_id = :request_id and not removed")
_LIST = text(f"{_READ} where not removed and id > :after order by id limit :limit")
_BEHIND = text(f"{_READ} where followed < version order by id")
_INSERT = text("""
    insert into flags (id, content, author, request_id, update_time)
    values (:id, :content, :author, :request_id, :now)
    on conflict (id) do update set content = excluded.content, version = flags.version + 1, removed = false,
        author = excluded.author, request_id = excluded.request_id, update_time = excluded.update_time
        where flags.removed
    returning version
""")
# A change of words moves nobody.
_UPDATE = text("""
    update flags set content = :content, removed = :removed, version = version + 1, author = :author,
        update_time = :now,
        followed = case when not :turns and followed = version then version + 1 else followed end
    where id = :id and version = :version and not removed
""")
_FOLLOWED = text("update flags set followed = :version where id = :id and version = :version")
_FORGET = text("delete from flags where removed and followed = version")


async def get(work: AsyncConnection, id_: str) -> Flag | None:
    return _one(await work.execute(_GET, {"id": id_}))


async def by_request(work: AsyncConnection, request_id: str) -> Flag | None:
    return _one(await work.execute(_BY_REQUEST, {"request_id": request_id}))


async def listed(work: AsyncConnection, after: str, limit: int) -> list[Flag]:
    return _many(await work.execute(_LIST, {"after": after, "limit": limit}))


async def behind(work: AsyncConnection) -> list[Flag]:
    """Those that connections do not follow yet."""
    return _many(await work.execute(_BEHIND))


async def insert(work: AsyncConnection, flag: Flag, request_id: str, now: datetime) -> int | None:
    """Its version; None if there is one of that id."""
    row = {
        "id": flag.id,
        "content": flag.content.SerializeToString(deterministic=True),
        "author": flag.author,
        "request_id": request_id or None,
        "now": now,
    }
    found = (await work.execute(_INSERT, row)).one_or_none()
    return None if found is None else int(found.version)


async def update(work: AsyncConnection, flag: Flag, now: datetime, *, turns: bool) -> bool:
    """As it is given from now on; false if it is not at the version any more that it was made from.

    `turns`: for whom it is on may have changed.
    """
    row = {
        "id": flag.id,
        "content": flag.content.SerializeToString(deterministic=True),
        "removed": flag.removed,
        "turns": turns,
        "version": flag.version,
        "author": flag.author,
        "now": now,
    }
    return bool((await work.execute(_UPDATE, row)).rowcount)


async def followed(work: AsyncConnection, flag: Flag) -> None:
    """Every connection is as this version wants it."""
    await work.execute(_FOLLOWED, {"id": flag.id, "version": flag.version})
    await work.execute(_FORGET)


def _one(result: Any) -> Flag | None:
    row = result.mappings().one_or_none()
    return None if row is None else _read(row)


def _many(result: Any) -> list[Flag]:
    return [_read(row) for row in result.mappings()]


def _read(row: Mapping[str, Any]) -> Flag:
    return Flag(row["id"], Message.FromString(row["content"]), row["version"], row["removed"], row["author"])
