"""Queries of those who work on connections in the background, with the worker's role.

Work is claimed in the row itself, until a moment by the database's clock: of several replicas one does it, and
what a dead one left is taken over when its claim is over. Whoever lost a claim changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.connections import accounts as account_keys
from services.registry.connections import store
from services.registry.connections.connection import Application, Connection, Revision
from tieline.common.v1.failure_pb2 import Failure

LEASE = timedelta(seconds=15)
REQUESTS_KEPT = timedelta(days=1)

_FREE = "next_try <= now() and (claim_until is null or claim_until < now())"


def _claiming(which: str, also: str = "") -> Any:
    return text(f"""
        update connections set claim_owner = :owner, claim_until = now() + cast(:lease as interval) {also}
        where (tenant, id) in (
            select tenant, id from connections where {which} and {_FREE}
            order by next_try limit :limit for update skip locked)
        returning tenant, id
    """)  # noqa: S608 - constants of ours


_TAKE_TO_APPLY = _claiming(
    "application in ('pending', 'applying') and state not in ('paused', 'deleting')",
    ", application = 'applying'",
)
_TAKE_TO_END = _claiming("state = 'deleting'")
_READ = text(f"""{store.NEWEST} join unnest(cast(:tenants as text[]), cast(:ids as text[])) as t (tenant, id)
    on t.tenant = c.tenant and t.id = c.id where c.claim_owner = :owner""")
_EXTEND = text("""
    update connections set claim_until = now() + cast(:lease as interval)
    where claim_owner = :owner and 'tenants/' || tenant || '/connections/' || id = any (cast(:names as text[]))
""")
_LET_GO = text("""
    update connections set claim_owner = null, claim_until = null,
        application = case when application = 'applying' then 'pending' else application end
    where claim_owner = :owner
""")
_MINE = """
    where tenant = :tenant and id = :id and revision = :revision and claim_owner = :owner and application = 'applying'
"""
_APPLIED = text(f"""
    update connections set applied_revision = :revision, application = 'applied', application_failure = null,
        resolved_version = :version, proven_accounts = :accounts, update_time = :now, attempts = 0,
        claim_owner = null, claim_until = null, prove_after = case when :app <> '' then now() + interval '1 hour' end,
        state_time = case when state = 'pending' then :now else state_time end,
        state = case when state = 'pending' then 'active' else state end
    {_MINE}
""")  # noqa: S608 - constants of ours
_NOT_APPLIED = text(f"""
    update connections set application = :application, application_failure = :failure, update_time = :now,
        attempts = attempts + 1, next_try = now() + cast(:pause as interval), claim_owner = null, claim_until = null
    {_MINE}
""")  # noqa: S608 - constants of ours
_REVISION_WENT = text("""
    update connection_revisions set application = :application
    where tenant = :tenant and connection = :id and revision = :revision
""")
_END_ENDPOINTS = text("""
    delete from endpoints where tenant = :tenant and connection = :id and webhook <> all (cast(:kept as text[]))
""")
_PUT_OFF = text("""
    update connections set failure = :failure, attempts = attempts + 1, next_try = now() + cast(:pause as interval),
        claim_owner = null, claim_until = null
    where tenant = :tenant and id = :id and claim_owner = :owner
""")
_ERASE = [
    text("""
        delete from account_keys where instance in (
            select instance from connections where tenant = :tenant and id = :id)
    """),
    text("delete from checkpoints where tenant = :tenant and connection = :id"),
    text("delete from endpoints where tenant = :tenant and connection = :id"),
    text("delete from connection_revisions where tenant = :tenant and connection = :id"),
    text("delete from connections where tenant = :tenant and id = :id"),
]
_ENDS = text("""
    select id from connections where tenant = :tenant and id = :id and state = 'deleting' and claim_owner = :owner
    for update
""")
# Once for each claim: a later change sets it anew.
_TAKE_UNTIDY = text("""
    update connections set tidy_after = now() + interval '5 minutes'
    where (tenant, id) in (
        select tenant, id from connections
        where tidy_after <= now() and state <> 'deleting' and application not in ('pending', 'applying')
        order by tidy_after limit :limit for update skip locked)
    returning tenant, id, tidy_after
""")
_TIDY = text("""
    update connections set tidy_after = null where tenant = :tenant and id = :id and tidy_after = :tidy_after
""")
_MIGRATED = text("""
    update connections set revision = :revision, edition = edition + 1, application = 'pending',
        application_failure = null, attempts = 0, next_try = now(), claim_owner = null, claim_until = null,
        update_time = :now
    where tenant = :tenant and id = :id and revision = :before and applied_revision = :before and state <> 'deleting'
""")
_TAKE_TO_PROVE = text("""
    update connections set prove_after = now() + interval '1 hour'
    where (tenant, id) in (
        select tenant, id from connections
        where prove_after <= now() and state = 'active' and applied_revision = revision
        order by prove_after limit :limit for update skip locked)
    returning 'tenants/' || tenant || '/connections/' || id as name
""")
_SWEEP = text("delete from connection_requests where create_time < now() - cast(:kept as interval)")


async def take_to_apply(work: AsyncConnection, owner: str, limit: int) -> list[Connection]:
    """What waits to be applied, and what a dead one left half applied; whoever waits longest first."""
    return await _take(work, _TAKE_TO_APPLY, owner, limit)


async def take_to_end(work: AsyncConnection, owner: str, limit: int) -> list[Connection]:
    return await _take(work, _TAKE_TO_END, owner, limit)


async def extend(work: AsyncConnection, owner: str, names: Collection[str]) -> None:
    """Of connections that are still being worked on; what was given up is somebody's again when its claim is over."""
    await work.execute(_EXTEND, {"owner": owner, "lease": LEASE, "names": list(names)})


async def let_go(work: AsyncConnection, owner: str) -> None:
    """Whoever is next need not wait."""
    await work.execute(_LET_GO, {"owner": owner})


async def applied(
    work: AsyncConnection,
    connection: Connection,
    owner: str,
    *,
    version: str,
    accounts: Sequence[str],
    webhooks: Collection[str],
    now: datetime,
) -> int:
    """Its newest revision serves from that generation on, with these webhooks; 0 if that is no longer ours to say."""
    told = {"version": version, "accounts": list(accounts), "app": connection.wanted.app, "now": now}
    row = _row(connection, owner) | told
    if not (await work.execute(_APPLIED, row)).rowcount:
        return 0
    await work.execute(_REVISION_WENT, _row(connection, owner) | {"application": "applied"})
    await work.execute(_END_ENDPOINTS, _row(connection, owner) | {"kept": list(webhooks)})
    await account_keys.prove(work, connection, accounts)
    return await store.changed(work)


async def not_applied(
    work: AsyncConnection,
    connection: Connection,
    owner: str,
    *,
    application: Application,
    failure: Failure,
    pause: timedelta,
    now: datetime,
) -> None:
    """Why its newest revision does not serve; PENDING says that it is tried again after the pause."""
    told = {
        "application": application.value,
        "failure": failure.SerializeToString(deterministic=True),
        "pause": pause,
        "now": now,
    }
    row = _row(connection, owner) | told
    if (await work.execute(_NOT_APPLIED, row)).rowcount and application is Application.FAILED:
        await work.execute(_REVISION_WENT, row)


async def put_off(
    work: AsyncConnection, connection: Connection, owner: str, failure: Failure, pause: timedelta
) -> None:
    """It could not be ended yet, for that reason."""
    told = {"failure": failure.SerializeToString(deterministic=True), "pause": pause}
    await work.execute(_PUT_OFF, _row(connection, owner) | told)


async def erase(work: AsyncConnection, connection: Connection, owner: str) -> None:
    """Nothing of it is left, and its id may be used again."""
    row = _row(connection, owner)
    if (await work.execute(_ENDS, row)).one_or_none() is None:
        return
    for statement in _ERASE:
        await work.execute(statement, row)
    await store.changed(work)


async def take_untidy(work: AsyncConnection, limit: int) -> Sequence[Any]:
    """Connections whose grants may be more than they want."""
    return (await work.execute(_TAKE_UNTIDY, {"limit": limit})).all()


async def tidy(work: AsyncConnection, row: Any) -> None:
    await work.execute(_TIDY, {"tenant": row.tenant, "id": row.id, "tidy_after": row.tidy_after})


async def migrated(work: AsyncConnection, connection: Connection, new: Revision) -> bool:
    """The platform's own revision follows; false if somebody changed the connection meanwhile."""
    row = {"tenant": connection.tenant, "id": connection.id, "before": connection.applied_revision}
    told = {"revision": new.number, "now": new.create_time}
    if not (await work.execute(_MIGRATED, row | told)).rowcount:
        return False
    await store.add_revision(work, connection, new)
    await store.changed(work)
    return True


async def take_to_prove(work: AsyncConnection, limit: int) -> list[str]:
    """Connections whose accounts are to be asked about, each for an hour."""
    return [row.name for row in await work.execute(_TAKE_TO_PROVE, {"limit": limit})]


async def sweep_requests(work: AsyncConnection) -> None:
    await work.execute(_SWEEP, {"kept": REQUESTS_KEPT})


async def _take(work: AsyncConnection, statement: Any, owner: str, limit: int) -> list[Connection]:
    claim = {"owner": owner, "lease": LEASE, "limit": limit}
    rows = (await work.execute(statement, claim)).all()
    if not rows:
        return []
    names = {"tenants": [row.tenant for row in rows], "ids": [row.id for row in rows]}
    found = store.many(await work.execute(_READ, names | {"owner": owner}))
    order = {(row.tenant, row.id): place for place, row in enumerate(rows)}
    return sorted(found, key=lambda one: order[one.tenant, one.id])


def _row(connection: Connection, owner: str) -> dict[str, Any]:
    return {
        "tenant": connection.tenant,
        "id": connection.id,
        "revision": connection.revision,
        "owner": owner,
    }
