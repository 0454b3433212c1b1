"""Queries about apps. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.apps.app import App
from services.registry.connections.store import changed
from tieline.registry.v1.apps_pb2 import App as Message

REQUESTS_KEPT = timedelta(days=1)

_READ = """
    select a.id, a.instance, a.content, a.edition, a.create_time, a.request_digest,
           (select coalesce(json_object_agg(e.webhook, e.endpoint), '{}'::json)::text from app_endpoints e
            where e.app = a.id) as endpoints
    from apps a
"""
_GET = text(f"{_READ} where a.id = :id")
_LOCKED = text("select id from apps where id = :id for update")
_BY_REQUEST = text(
    f"{_READ} where a.request_id = :request_id and a.create_time > now() - cast(:kept as interval)"
)
_LIST = text(f"{_READ} where a.id > :after order by a.id limit :limit")
_ALL = text(f"{_READ} order by a.id")
_INSERT = text("""
    insert into apps (id, instance, content, settings, request_id, request_digest, create_time)
    values (:id, :instance, :content, :settings, :request_id, :digest, :now)
    on conflict do nothing returning id
""")
_FORGET_REQUEST = text("""
    update apps set request_id = null
    where request_id = :request_id and create_time <= now() - cast(:kept as interval)
""")
_INSERT_ENDPOINT = text("""
    insert into app_endpoints (app, webhook, endpoint) values (:id, :webhook, :endpoint) on conflict do nothing
""")
_UPDATE = text("""
    update apps set content = :content, settings = :settings, edition = edition + 1
    where id = :id and instance = :instance and edition = :edition
""")
_DELETE = [
    text("delete from app_endpoints where app = :id"),
    text("delete from account_keys where app = 'apps/' || :id"),
    text("delete from apps where id = :id"),
]


async def get(work: AsyncConnection, id_: str) -> App | None:
    return _one(await work.execute(_GET, {"id": id_}))


async def locked(work: AsyncConnection, id_: str) -> App | None:
    """As long as the transaction lasts, no connection begins to use it."""
    await work.execute(_LOCKED, {"id": id_})
    return await get(work, id_)


async def by_request(work: AsyncConnection, request_id: str) -> tuple[App, bytes] | None:
    """What a request of the last day made, and what it was about."""
    found: Any = await work.execute(_BY_REQUEST, {"request_id": request_id, "kept": REQUESTS_KEPT})
    row = found.mappings().one_or_none()
    return None if row is None else (_read(row), bytes(row["request_digest"]))


async def listed(work: AsyncConnection, after: str, limit: int) -> list[App]:
    return _many(await work.execute(_LIST, {"after": after, "limit": limit}))


async def everything(work: AsyncConnection) -> list[App]:
    return _many(await work.execute(_ALL))


async def insert(work: AsyncConnection, app: App, request_id: str, digest: bytes) -> bool:
    """False if that id, or that request, is there already."""
    if request_id:
        await work.execute(_FORGET_REQUEST, {"request_id": request_id, "kept": REQUESTS_KEPT})
    row = _row(app) | {"request_id": request_id or None, "digest": digest, "now": app.create_time}
    if (await work.execute(_INSERT, row)).one_or_none() is None:
        return False
    await _add_endpoints(work, app)
    await changed(work)
    return True


async def update(work: AsyncConnection, app: App) -> bool:
    """As it is given from now on; false if it is not at the edition any more that it was made from."""
    if not (await work.execute(_UPDATE, _row(app))).rowcount:
        return False
    await _add_endpoints(work, app)
    await changed(work)
    return True


async def delete(work: AsyncConnection, id_: str) -> None:
    """With the worker's role."""
    for statement in _DELETE:
        await work.execute(statement, {"id": id_})
    await changed(work)


async def _add_endpoints(work: AsyncConnection, app: App) -> None:
    """Those that are there keep their URL."""
    for webhook, endpoint in app.endpoints.items():
        await work.execute(_INSERT_ENDPOINT, {"id": app.id, "webhook": webhook, "endpoint": endpoint})


def _row(app: App) -> dict[str, Any]:
    return {
        "id": app.id,
        "instance": app.instance,
        "edition": app.edition,
        "content": app.content.SerializeToString(deterministic=True),
        "settings": app.content.settings,
    }


def _one(result: Any) -> App | None:
    row = result.mappings().one_or_none()
    return None if row is None else _read(row)


def _many(result: Any) -> list[App]:
    return [_read(row) for row in result.mappings()]


def _read(row: Mapping[str, Any]) -> App:
    return App(
        id=row["id"],
        instance=row["instance"],
        content=Message.FromString(row["content"]),
        edition=row["edition"],
        create_time=row["create_time"],
        endpoints=json.loads(row["endpoints"]),
    )
