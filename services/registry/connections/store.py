"""All queries of the registry. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.connections.connection import Application, Connection, State
from tieline.common.v1.failure_pb2 import Failure
from tieline.registry.v1 import connections_pb2 as pb

_READ = """
    select c.tenant, c.id, c.instance, c.revision, c.applied_revision, c.state, c.state_time, c.failure, c.application,
           c.application_failure, c.resolved_version, c.create_time, c.update_time, r.wanted, r.settings_version,
           (select coalesce(json_object_agg(e.webhook, e.endpoint), '{{}}'::json)::text from endpoints e
            where e.tenant = c.tenant and e.connection = c.id) as endpoints,
           (select coalesce(json_agg(json_build_object(
                'webhook', s.webhook, 'id', s.subscription_id, 'failure', encode(s.failure, 'hex'),
                'expires', extract(epoch from s.expire_time)) order by s.webhook), '[]'::json)::text
            from subscriptions s where s.tenant = c.tenant and s.connection = c.id
              and s.instance = c.instance and (s.subscription_id <> '' or s.failure is not null)) as subscriptions
    from connections c
    join connection_revisions r on r.tenant = c.tenant and r.connection = c.id and r.revision = {revision}
"""
_NEWEST = _READ.format(revision="c.revision")
# What serves is the applied revision; where none does yet, the newest is what will.
_SERVING = _READ.format(revision="coalesce(nullif(c.applied_revision, 0), c.revision)")

_GET = text(f"{_NEWEST} where c.tenant = :tenant and c.id = :id")
_BY_REQUEST = text(f"{_NEWEST} where c.tenant = :tenant and c.request_id = :request_id")
_LIST = text(f"""{_NEWEST} where c.tenant = :tenant and c.id > :after
    and (cast(:plugin as text) = '' or c.plugin = :plugin) order by c.id limit :limit""")
_ALL = text(f"{_SERVING} order by c.tenant, c.id")
_PENDING = text(f"{_NEWEST} where c.application = 'pending' order by c.create_time limit :limit")

_INSERT = text("""
    insert into connections (tenant, id, instance, plugin, revision, state, state_time, application, request_id,
                             create_time, update_time)
    values (:tenant, :id, :instance, :plugin, :revision, :state, :now, :application, :request_id, :now, :now)
    on conflict do nothing returning id
""")
_INSERT_REVISION = text("""
    insert into connection_revisions (tenant, connection, revision, wanted, settings_version, author, create_time)
    values (:tenant, :id, :revision, :wanted, :settings_version, :author, :now)
""")
_INSERT_ENDPOINT = text("""
    insert into endpoints (tenant, connection, webhook, endpoint) values (:tenant, :id, :webhook, :endpoint)
""")
_APPLIED = text("""
    update connections set applied_revision = :revision, application = 'applied', application_failure = null,
        resolved_version = :version, update_time = :now,
        state_time = case when state = 'pending' then :now else state_time end,
        state = case when state = 'pending' then 'active' else state end
    where tenant = :tenant and id = :id and revision = :revision and application <> 'applied'
""")
_NOT_APPLIED = text("""
    update connections set application = :application, application_failure = :failure, update_time = :now
    where tenant = :tenant and id = :id and revision = :revision and application = 'pending'
      and (application_failure, application) is distinct from (:failure, :application)
""")
# What was suspended goes back to where it was: to work, or to wait for its first revision.
_SUSPENDED = text("""
    update connections set state = 'suspended', state_time = :now, failure = :failure, update_time = :now
    where tenant = :tenant and id = :id and state in ('pending', 'active')
""")
_RESUMED = text("""
    update connections set state = case when applied_revision > 0 then 'active' else 'pending' end,
        state_time = :now, failure = null, update_time = :now
    where tenant = :tenant and id = :id and state = 'suspended'
""")
_CHANGED = text("update picture set generation = generation + 1 returning generation")
_GENERATION = text("select generation from picture")


async def get(work: AsyncConnection, tenant: str, id_: str) -> Connection | None:
    return _one(await work.execute(_GET, {"tenant": tenant, "id": id_}))


async def by_request(work: AsyncConnection, tenant: str, request_id: str) -> Connection | None:
    return _one(await work.execute(_BY_REQUEST, {"tenant": tenant, "request_id": request_id}))


async def listed(
    work: AsyncConnection, tenant: str, *, after: str, plugin: str, limit: int
) -> list[Connection]:
    scope = {"tenant": tenant, "after": after, "plugin": plugin, "limit": limit}
    return _many(await work.execute(_LIST, scope))


async def everything(work: AsyncConnection) -> list[Connection]:
    """With the worker's role: every connection of every tenant, at the revision that serves."""
    return _many(await work.execute(_ALL))


async def pending(work: AsyncConnection, limit: int) -> list[Connection]:
    """With the worker's role: what waits to be applied, oldest first."""
    return _many(await work.execute(_PENDING, {"limit": limit}))


async def insert(work: AsyncConnection, connection: Connection, *, request_id: str, author: str) -> bool:
    """False if that name, or that request, is there already."""
    row: dict[str, Any] = {
        "tenant": connection.tenant,
        "id": connection.id,
        "revision": connection.revision,
        "now": connection.create_time,
    }
    fields = {
        "instance": connection.instance,
        "plugin": connection.plugin,
        "state": connection.state.value,
        "application": connection.application.value,
        "request_id": request_id or None,
    }
    if (await work.execute(_INSERT, row | fields)).one_or_none() is None:
        return False
    wanted = connection.wanted.SerializeToString(deterministic=True)
    revision = {"wanted": wanted, "settings_version": connection.settings_version, "author": author}
    await work.execute(_INSERT_REVISION, row | revision)
    own = {"tenant": connection.tenant, "id": connection.id}
    for webhook, endpoint in connection.endpoints.items():
        await work.execute(_INSERT_ENDPOINT, own | {"webhook": webhook, "endpoint": endpoint})
    await changed(work)
    return True


async def applied(work: AsyncConnection, connection: Connection, version: str, now: datetime) -> None:
    """Its newest revision serves from now on."""
    row = {"tenant": connection.tenant, "id": connection.id, "revision": connection.revision}
    result = await work.execute(_APPLIED, row | {"version": version, "now": now})
    if result.rowcount:
        await changed(work)


async def not_applied(
    work: AsyncConnection,
    connection: Connection,
    application: Application,
    failure: Failure,
    now: datetime,
) -> None:
    """Why its newest revision does not serve; PENDING says that it is tried again."""
    row = {"tenant": connection.tenant, "id": connection.id, "revision": connection.revision}
    told = {"application": application.value, "failure": failure.SerializeToString(deterministic=True)}
    await work.execute(_NOT_APPLIED, row | told | {"now": now})


async def suspended(work: AsyncConnection, connection: Connection, failure: Failure, now: datetime) -> None:
    """The platform pauses it, for that reason."""
    row = {"tenant": connection.tenant, "id": connection.id, "now": now}
    result = await work.execute(_SUSPENDED, row | {"failure": failure.SerializeToString(deterministic=True)})
    if result.rowcount:
        await changed(work)


async def resumed(work: AsyncConnection, connection: Connection, now: datetime) -> None:
    """What the platform paused it for is over."""
    row = {"tenant": connection.tenant, "id": connection.id, "now": now}
    result = await work.execute(_RESUMED, row)
    if result.rowcount:
        await changed(work)


async def changed(work: AsyncConnection) -> None:
    """Last in its transaction: everybody who changes anything waits for this one row."""
    await work.execute(_CHANGED)


async def generation(work: AsyncConnection) -> int:
    number: int = (await work.execute(_GENERATION)).scalar_one()
    return number


def _one(result: Any) -> Connection | None:
    row = result.mappings().one_or_none()
    return None if row is None else _read(row)


def _many(result: Any) -> list[Connection]:
    rows: Sequence[Mapping[str, Any]] = result.mappings().all()
    return [_read(row) for row in rows]


def _read(row: Mapping[str, Any]) -> Connection:
    failure, refusal = row["failure"], row["application_failure"]
    return Connection(
        tenant=row["tenant"],
        id=row["id"],
        instance=row["instance"],
        wanted=pb.Connection.FromString(row["wanted"]),
        settings_version=row["settings_version"],
        revision=row["revision"],
        applied_revision=row["applied_revision"],
        state=State(row["state"]),
        state_time=row["state_time"],
        failure=None if failure is None else Failure.FromString(failure),
        application=Application(row["application"]),
        application_failure=None if refusal is None else Failure.FromString(refusal),
        resolved_version=row["resolved_version"],
        endpoints=json.loads(row["endpoints"]),
        subscriptions=tuple(map(_subscription, json.loads(row["subscriptions"]))),
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _subscription(told: Mapping[str, Any]) -> pb.ProviderSubscription:
    one = pb.ProviderSubscription(webhook=told["webhook"], subscription_id=told["id"])
    if told["expires"] is not None:
        one.expire_time.FromMilliseconds(round(told["expires"] * 1000))
    if told["failure"] is not None:
        one.failure.MergeFromString(bytes.fromhex(told["failure"]))
    return one
