"""Queries about connections and their revisions. Transactions are begun and ended by whoever calls.

What works on connections in the background has its queries in `claims.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from services.registry.connections.connection import Application, Connection, Revision, State
from tieline.common.v1.failure_pb2 import Failure
from tieline.registry.v1 import connections_pb2 as pb

_READ = """
    select c.tenant, c.id, c.instance, c.revision, c.applied_revision, c.state, c.state_time, c.failure, c.application,
           c.application_failure, c.resolved_version, c.create_time, c.update_time, r.wanted, r.settings_version,
           c.edition, c.attempts, c.proven_accounts, a.settings as app_settings,
           (select coalesce(json_object_agg(k.account_key, k.claim), '{{}}'::json)::text from account_keys k
            where k.instance = c.instance and k.app = r.app) as accounts,
           (select coalesce(json_object_agg(e.webhook, e.endpoint), '{{}}'::json)::text from endpoints e
            where e.tenant = c.tenant and e.connection = c.id) as endpoints,
           (select coalesce(json_agg(json_build_object(
                'webhook', s.webhook, 'id', s.subscription_id, 'failure', encode(s.failure, 'hex'),
                'expires', extract(epoch from s.expire_time)) order by s.webhook), '[]'::json)::text
            from subscriptions s where s.tenant = c.tenant and s.connection = c.id
              and s.instance = c.instance and (s.subscription_id <> '' or s.failure is not null)) as subscriptions
    from connections c
    join connection_revisions r on r.tenant = c.tenant and r.connection = c.id and r.revision = {revision}
    left join apps a on r.app = 'apps/' || a.id
"""
NEWEST = _READ.format(revision="c.revision")
# What serves is the applied revision; where none does yet, the newest is what will.
SERVING = _READ.format(revision="coalesce(nullif(c.applied_revision, 0), c.revision)")
_ETAG = "left(instance, 8) || '.' || edition"

_GET = text(f"{NEWEST} where c.tenant = :tenant and c.id = :id")
_GET_SERVING = text(f"{SERVING} where c.tenant = :tenant and c.id = :id")
_BY_REQUEST = text(f"{NEWEST} where c.tenant = :tenant and c.request_id = :request_id")
_LIST = text(f"""{NEWEST} where c.tenant = :tenant and c.id > :after
    and (cast(:plugin as text) = '' or c.plugin = :plugin) order by c.id limit :limit""")
_ALL_NEWEST = text(f"{NEWEST} order by c.tenant, c.id")
_ALL = text(f"{SERVING} order by c.tenant, c.id")
_OF_APP = text(f"""{NEWEST} where r.app = :app or exists (
        select from connection_revisions s where s.tenant = c.tenant and s.connection = c.id
          and s.revision = c.applied_revision and s.app = :app)
    order by c.tenant, c.id limit :limit""")
# Until the transaction ends the app is not removed.
_HOLD_APP = text("select id from apps where 'apps/' || id = :app for share")
_REVISIONS = text("""
    select revision, wanted, settings_version, author, create_time, application, rollback_of, migrated_from
    from connection_revisions
    where tenant = :tenant and connection = :id and revision < :before order by revision desc limit :limit
""")

_INSERT = text("""
    insert into connections (tenant, id, instance, plugin, revision, state, state_time, application, request_id,
                             create_time, update_time)
    values (:tenant, :id, :instance, :plugin, :revision, :state, :now, :application, :request_id, :now, :now)
    on conflict do nothing returning id
""")
_INSERT_REVISION = text("""
    insert into connection_revisions (tenant, connection, revision, wanted, settings_version, author, create_time,
                                      application, rollback_of, migrated_from, app)
    values (:tenant, :id, :revision, :wanted, :settings_version, :author, :now, :application, :rollback_of,
            :migrated_from, :app)
""")
_INSERT_ENDPOINT = text("""
    insert into endpoints (tenant, connection, webhook, endpoint) values (:tenant, :id, :webhook, :endpoint)
    on conflict do nothing
""")
# Of several who read the same, one finds it as it was: the others wait for this row, and then find another etag.
_CHANGE = text(f"""
    update connections set revision = :revision, edition = edition + 1, application = 'pending',
        application_failure = null, attempts = 0, next_try = now(), claim_owner = null, claim_until = null,
        tidy_after = now() + interval '2 minutes', update_time = :now
    where tenant = :tenant and id = :id and {_ETAG} = :etag and state <> 'deleting'
""")  # noqa: S608 - constants of ours
_SUPERSEDED = text("""
    update connection_revisions set application = 'failed'
    where tenant = :tenant and connection = :id and revision <= :until and application in ('pending', 'applying')
""")
_PAUSED = text("""
    update connections set state = 'paused', failure = :failure, edition = edition + 1,
        state_time = case when state = 'paused' then state_time else :now end,
        update_time = :now, claim_owner = null, claim_until = null,
        application = case when application = 'applying' then 'pending' else application end
    where tenant = :tenant and id = :id and state <> 'deleting'
""")
# What could not be applied is tried again: somebody says that something has changed.
_AWAKE = text("""
    update connections set failure = null, edition = edition + 1, update_time = :now, attempts = 0, next_try = now(),
        state_time = case when state in ('paused', 'suspended') then :now else state_time end,
        state = case when state not in ('paused', 'suspended') then state
                     when applied_revision > 0 then 'active' else 'pending' end,
        application = case when application = 'failed' then 'pending' else application end,
        application_failure = case when application = 'failed' then null else application_failure end
    where tenant = :tenant and id = :id and (state in ('paused', 'suspended') or application = 'failed')
      and state <> 'deleting'
""")
_DELETING = text(f"""
    update connections set state = 'deleting', state_time = :now, failure = null, edition = edition + 1,
        update_time = :now, claim_owner = null, claim_until = null, attempts = 0, next_try = now()
    where tenant = :tenant and id = :id and state <> 'deleting' and (cast(:etag as text) = '' or {_ETAG} = :etag)
""")  # noqa: S608 - constants of ours
# What was suspended goes back to where it was: to work, or to wait for its first revision. A revision that failed
# may have failed for the same credential.
_SUSPENDED = text("""
    update connections set state = 'suspended', state_time = :now, failure = :failure, update_time = :now
    where tenant = :tenant and id = :id and state in ('pending', 'active')
""")
_RESUMED = text("""
    update connections set state = case when applied_revision > 0 then 'active' else 'pending' end,
        state_time = :now, failure = null, update_time = :now, attempts = 0, next_try = now(),
        application = case when application = 'failed' then 'pending' else application end,
        application_failure = case when application = 'failed' then null else application_failure end
    where tenant = :tenant and id = :id and state = 'suspended'
""")
_REQUESTED = text("""
    insert into connection_requests (tenant, request_id, digest, connection, create_time)
    values (:tenant, :request_id, :digest, :id, :now) on conflict do nothing
""")
_ANSWERED = text("""
    select digest from connection_requests where tenant = :tenant and request_id = :request_id
""")
_CHANGED = text("update picture set generation = generation + 1 returning generation")
_GENERATION = text("select generation from picture")


async def get(work: AsyncConnection, tenant: str, id_: str) -> Connection | None:
    return _one(await work.execute(_GET, {"tenant": tenant, "id": id_}))


async def serving(work: AsyncConnection, tenant: str, id_: str) -> Connection | None:
    """At the revision that serves."""
    return _one(await work.execute(_GET_SERVING, {"tenant": tenant, "id": id_}))


async def by_request(work: AsyncConnection, tenant: str, request_id: str) -> Connection | None:
    return _one(await work.execute(_BY_REQUEST, {"tenant": tenant, "request_id": request_id}))


async def listed(
    work: AsyncConnection, tenant: str, *, after: str, plugin: str, limit: int
) -> list[Connection]:
    scope = {"tenant": tenant, "after": after, "plugin": plugin, "limit": limit}
    return many(await work.execute(_LIST, scope))


async def newest(work: AsyncConnection) -> list[Connection]:
    """With the worker's role: every connection of every tenant, at its newest revision."""
    return many(await work.execute(_ALL_NEWEST))


async def everything(work: AsyncConnection) -> list[Connection]:
    """With the worker's role: every connection of every tenant, at the revision that serves."""
    return many(await work.execute(_ALL))


async def of_app(work: AsyncConnection, app: str, limit: int | None) -> list[Connection]:
    """With the worker's role: those that use it, or would at their newest revision."""
    return many(await work.execute(_OF_APP, {"app": app, "limit": limit}))


async def revisions(
    work: AsyncConnection, tenant: str, id_: str, *, before: int, limit: int
) -> list[Revision]:
    """Newest first, from the one before that number on."""
    scope = {"tenant": tenant, "id": id_, "before": before, "limit": limit}
    rows: Any = (await work.execute(_REVISIONS, scope)).mappings().all()
    return [_revision(row) for row in rows]


async def revision(work: AsyncConnection, tenant: str, id_: str, number: int) -> Revision | None:
    found = await revisions(work, tenant, id_, before=number + 1, limit=1)
    return found[0] if found and found[0].number == number else None


async def insert(work: AsyncConnection, connection: Connection, *, request_id: str, author: str) -> bool:
    """False if that name, or that request, is there already."""
    fields = {
        "instance": connection.instance,
        "plugin": connection.plugin,
        "revision": connection.revision,
        "state": connection.state.value,
        "application": connection.application.value,
        "request_id": request_id or None,
        "now": connection.create_time,
    }
    if (await work.execute(_INSERT, _row(connection) | fields)).one_or_none() is None:
        return False
    first = Revision(
        number=connection.revision,
        wanted=connection.wanted,
        settings_version=connection.settings_version,
        author=author,
        create_time=connection.create_time,
    )
    await add_revision(work, connection, first)
    await add_endpoints(work, connection)
    await changed(work)
    return True


async def change(
    work: AsyncConnection, connection: Connection, new: Sequence[Revision], etag: str, now: datetime
) -> bool:
    """As `succeed`, with the endpoints that are new."""
    if not await _succeed(work, connection, new, etag, now):
        return False
    await add_endpoints(work, connection)
    await changed(work)
    return True


async def succeed(
    work: AsyncConnection, connection: Connection, new: Sequence[Revision], etag: str, now: datetime
) -> bool:
    """These revisions follow, the last of them is wanted; false if it is not as the etag has it any more."""
    if not await _succeed(work, connection, new, etag, now):
        return False
    await changed(work)
    return True


async def _succeed(
    work: AsyncConnection, connection: Connection, new: Sequence[Revision], etag: str, now: datetime
) -> bool:
    last = new[-1]
    row = _row(connection) | {"revision": last.number, "etag": etag, "now": now}
    if not (await work.execute(_CHANGE, row)).rowcount:
        return False
    for one in new:
        await add_revision(work, connection, one)
    await work.execute(_SUPERSEDED, _row(connection) | {"until": last.number - 1})
    return True


async def add_revision(work: AsyncConnection, connection: Connection, new: Revision) -> None:
    app = new.wanted.app
    if app and (await work.execute(_HOLD_APP, {"app": app})).one_or_none() is None:
        raise Problem(Code.INVALID_ARGUMENT, field="connection.app", why=f"there is no {app[:100]}")
    row = {
        "app": app,
        "revision": new.number,
        "wanted": new.wanted.SerializeToString(deterministic=True),
        "settings_version": new.settings_version,
        "author": new.author,
        "now": new.create_time,
        "application": new.application.value,
        "rollback_of": new.rollback_of,
        "migrated_from": new.migrated_from,
    }
    await work.execute(_INSERT_REVISION, _row(connection) | row)


async def add_endpoints(work: AsyncConnection, connection: Connection) -> None:
    """Those that are there keep their URL."""
    for webhook, endpoint in connection.endpoints.items():
        await work.execute(_INSERT_ENDPOINT, _row(connection) | {"webhook": webhook, "endpoint": endpoint})


async def paused(work: AsyncConnection, connection: Connection, why: Failure, now: datetime) -> None:
    """A person pauses it, or says why anew."""
    await _turn(work, _PAUSED, connection, now, failure=why.SerializeToString(deterministic=True))


async def awake(work: AsyncConnection, connection: Connection, now: datetime) -> None:
    """A person wants it to work again."""
    await _turn(work, _AWAKE, connection, now)


async def deleting(work: AsyncConnection, connection: Connection, etag: str, now: datetime) -> bool:
    """It is being ended from now on; false if it is not as the etag has it any more."""
    return await _turn(work, _DELETING, connection, now, etag=etag)


async def suspended(work: AsyncConnection, connection: Connection, failure: Failure, now: datetime) -> bool:
    """The platform pauses it, for that reason; false if it did not work anyway."""
    return await _turn(
        work, _SUSPENDED, connection, now, failure=failure.SerializeToString(deterministic=True)
    )


async def resumed(work: AsyncConnection, connection: Connection, now: datetime) -> bool:
    """What the platform paused it for is over; false if somebody has seen to that."""
    return await _turn(work, _RESUMED, connection, now)


async def requested(
    work: AsyncConnection, connection: Connection, request_id: str, digest: bytes, now: datetime
) -> bool:
    """Remember a request with what it changes; false if it was made before. One that comes meanwhile waits."""
    row = _row(connection) | {"request_id": request_id, "digest": digest, "now": now}
    return bool((await work.execute(_REQUESTED, row)).rowcount)


async def answered(work: AsyncConnection, tenant: str, request_id: str) -> bytes | None:
    """What the request of that id was about; None if there was none."""
    row = (await work.execute(_ANSWERED, {"tenant": tenant, "request_id": request_id})).one_or_none()
    return None if row is None else bytes(row.digest)


async def changed(work: AsyncConnection) -> int:
    """Last in its transaction: everybody who changes anything waits for this one row. The generation that it is."""
    number: int = (await work.execute(_CHANGED)).scalar_one()
    return number


async def generation(work: AsyncConnection) -> int:
    number: int = (await work.execute(_GENERATION)).scalar_one()
    return number


def many(result: Any) -> list[Connection]:
    rows: Iterable[Mapping[str, Any]] = result.mappings().all()
    return [_read(row) for row in rows]


async def _turn(
    work: AsyncConnection, statement: Any, connection: Connection, now: datetime, **more: Any
) -> bool:
    result = await work.execute(statement, _row(connection) | {"now": now} | more)
    if result.rowcount:
        await changed(work)
    return bool(result.rowcount)


def _row(connection: Connection) -> dict[str, Any]:
    return {"tenant": connection.tenant, "id": connection.id}


def _one(result: Any) -> Connection | None:
    found = many(result)
    return found[0] if found else None


def _read(row: Mapping[str, Any]) -> Connection:
    wanted = pb.Connection.FromString(row["wanted"])
    named, received = {one.key for one in wanted.account_keys}, json.loads(row["accounts"])
    failure, refusal = row["failure"], row["application_failure"]
    return Connection(
        tenant=row["tenant"],
        id=row["id"],
        instance=row["instance"],
        wanted=wanted,
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
        edition=row["edition"],
        attempts=row["attempts"],
        proven_accounts=tuple(row["proven_accounts"]),
        app_settings=row["app_settings"] or b"",
        accounts={key: claim for key, claim in received.items() if key in named},
    )


def _revision(row: Mapping[str, Any]) -> Revision:
    return Revision(
        number=row["revision"],
        wanted=pb.Connection.FromString(row["wanted"]),
        settings_version=row["settings_version"],
        author=row["author"],
        create_time=row["create_time"],
        application=Application(row["application"]),
        rollback_of=row["rollback_of"],
        migrated_from=row["migrated_from"],
    )


def _subscription(told: Mapping[str, Any]) -> pb.ProviderSubscription:
    one = pb.ProviderSubscription(webhook=told["webhook"], subscription_id=told["id"])
    if told["expires"] is not None:
        one.expire_time.FromMilliseconds(round(told["expires"] * 1000))
    if told["failure"] is not None:
        one.failure.MergeFromString(bytes.fromhex(told["failure"]))
    return one
