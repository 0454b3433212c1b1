"""All queries of operations. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.operations.operation import Operation, Progress, Repeats, State
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.execute_pb2 import ExecuteResponse

PAGE_BYTES = 8 * 1024 * 1024

READ = """
    select tenant, id, position, connection, action, arguments, idempotency_key, repeats, timeout_seconds, author, cause, ordering_key,
    start_deadline, create_time, state, state_time, due_time, output, failure, written, pending_id, attempts,
    faults, waits, asks, uncertain, away, cancel_wanted, resolved, changes, claim, receives,
    timeout_seconds, attempt_until
    from operations
"""
_GET = text(f"{READ} where tenant = :tenant and id = :id")
_LOCK = text(f"{READ} where tenant = :tenant and id = :id for update")
_BY_KEY = text(f"""
    {READ} where tenant = :tenant and connection = :connection
      and action = :action and idempotency_key = :key and key_held
""")
# Each may carry two documents of 1 MiB, so a page ends with the one that goes past its bytes.
_PAGE = text("""
    with page as (
        select id, position, octet_length(arguments) + coalesce(octet_length(output), 0) as size from operations
        where tenant = :tenant and (:before = 0 or position < :before)
          and (cast(:connection as text) = '' or connection = :connection)
          and (cardinality(cast(:states as text[])) = 0 or state = any (cast(:states as text[])))
        order by position desc limit :limit
    ), summed as (
        select id, count(*) over () as found, sum(size) over (order by position desc) - size as above from page
    )
    select id, found from summed where above < :bytes
""")
_THESE = text(f"{READ} where tenant = :tenant and id = any (cast(:ids as text[])) order by position desc")
_CHANGES = text("select changes from operations where tenant = :tenant and id = :id")
_OPEN_OF = text(f"""
    {READ} where tenant = :tenant and connection = :connection
      and state in ('queued', 'running', 'pending', 'ambiguous') order by position for update
""")
# A key is kept for its time, and as long as what it stands for has not ended.
_LET_GO = text("""
    update operations set key_held = false
    where tenant = :tenant and connection = :connection and action = :action and idempotency_key = :key
      and key_held and create_time < :before and state not in ('queued', 'running', 'pending', 'ambiguous')
""")
_INSERT = text("""
    insert into operations (tenant, id, connection, action, arguments, idempotency_key, repeats, timeout_seconds, author, cause,
                            ordering_key, receives, start_deadline, create_time, state, state_time, due_time)
    values (:tenant, :id, :connection, :action, :arguments, :key, :repeats, :timeout_seconds, :author, :cause,
            :ordering_key, :receives, :start_deadline, :create_time, :state, :state_time, :due)
    on conflict do nothing returning position
""")
_UPDATE = text("""
    update operations set state = :state, due_time = :due, start_deadline = :start_deadline, repeats = :repeats,
        output = :output, failure = :failure, written = :written, pending_id = :pending_id, attempts = :attempts,
        faults = :faults, waits = :waits, asks = :asks, uncertain = :uncertain, away = :away,
        cancel_wanted = :cancel_wanted, resolved = :resolved, changes = changes + 1,
        state_time = case when state = :state then state_time else :now end
    where tenant = :tenant and id = :id
""")
_CLAIM = text("""
    update operations set owner = :owner, lease_time = :until, claim = claim + 1,
        attempt_until = case when state = 'running' then cast(:attempt_until as timestamptz) else attempt_until end
    where tenant = :tenant and id = :id
""")
_RELEASE = text("""
    update operations set owner = null, lease_time = null where tenant = :tenant and id = :id
""")


async def get(work: AsyncConnection, tenant: str, id_: str) -> Operation | None:
    return _one(await work.execute(_GET, {"tenant": tenant, "id": id_}))


async def lock(work: AsyncConnection, tenant: str, id_: str) -> Operation | None:
    """Until the end of the transaction nobody else changes it."""
    return _one(await work.execute(_LOCK, {"tenant": tenant, "id": id_}))


async def by_key(work: AsyncConnection, operation: Operation, before: datetime) -> Operation | None:
    """What the key stands for, if it was not given up before that time."""
    names = {
        "tenant": operation.tenant,
        "connection": operation.connection,
        "action": operation.action,
        "key": operation.key,
    }
    found = _one(await work.execute(_BY_KEY, names))
    stale = found is not None and found.create_time < before and found.progress.ended
    return None if stale else found


async def insert(work: AsyncConnection, operation: Operation, before: datetime) -> bool:
    """False if its key stands for something already. Keys from before that time are let go."""
    row = {
        "tenant": operation.tenant,
        "id": operation.id,
        "connection": operation.connection,
        "action": operation.action,
        "arguments": operation.arguments,
        "key": operation.key,
        "author": operation.author,
        "cause": operation.cause,
        "ordering_key": operation.ordering_key,
        "receives": operation.receives,
        "create_time": operation.create_time,
        "state_time": operation.state_time,
    }
    names = {name: row[name] for name in ("tenant", "connection", "action", "key")}
    await work.execute(_LET_GO, names | {"before": before})
    progress = operation.progress
    fields = {
        "repeats": progress.repeats.value,
        "timeout_seconds": operation.timeout,
        "start_deadline": progress.start_deadline,
        "state": progress.state.value,
        "due": progress.due,
    }
    return (await work.execute(_INSERT, row | fields)).one_or_none() is not None


async def listed(
    work: AsyncConnection, tenant: str, *, before: int, connection: str, states: Collection[State], size: int
) -> tuple[list[Operation], bool]:
    """A page, newest first, and whether there is more."""
    scope = {
        "tenant": tenant,
        "before": before,
        "connection": connection,
        "states": [state.value for state in states],
        "limit": size + 1,
        "bytes": PAGE_BYTES,
    }
    chosen = (await work.execute(_PAGE, scope)).all()
    ids = [row.id for row in chosen]
    found = many(await work.execute(_THESE, {"tenant": tenant, "ids": ids}))[:size]
    return found, bool(chosen) and chosen[0].found > len(found)


async def changes(work: AsyncConnection, tenant: str, id_: str) -> int:
    """How often it has changed; 0: it is not there."""
    found: int | None = (await work.execute(_CHANGES, {"tenant": tenant, "id": id_})).scalar_one_or_none()
    return found or 0


async def open_of(work: AsyncConnection, tenant: str, connection: str) -> list[Operation]:
    """What has not ended of a connection, locked."""
    return many(await work.execute(_OPEN_OF, {"tenant": tenant, "connection": connection}))


async def update(work: AsyncConnection, was: Operation, now: Progress, when: datetime) -> None:
    """What was locked before goes on."""
    row = {
        "tenant": was.tenant,
        "id": was.id,
        "state": now.state.value,
        "due": now.due,
        "start_deadline": now.start_deadline,
        "repeats": now.repeats.value,
        "output": now.output,
        "failure": None if now.failure is None else now.failure.SerializeToString(deterministic=True),
        "written": ExecuteResponse(written=now.written).SerializeToString() if now.written else None,
        "pending_id": now.pending_id,
        "attempts": now.attempts,
        "faults": now.faults,
        "waits": now.waits,
        "asks": now.asks,
        "uncertain": now.uncertain,
        "away": now.away,
        "cancel_wanted": now.cancel_wanted,
        "resolved": now.resolved,
        "now": when,
    }
    await work.execute(_UPDATE, row)


async def claim(
    work: AsyncConnection, operation: Operation, owner: str, until: datetime, attempt_until: datetime
) -> None:
    """Somebody is at it from now on, under the next claim."""
    own = {"tenant": operation.tenant, "id": operation.id}
    await work.execute(_CLAIM, own | {"owner": owner, "until": until, "attempt_until": attempt_until})


async def release(work: AsyncConnection, operation: Operation) -> None:
    await work.execute(_RELEASE, {"tenant": operation.tenant, "id": operation.id})


def _one(result: Any) -> Operation | None:
    row = result.mappings().one_or_none()
    return None if row is None else read(row)


def many(result: Any) -> list[Operation]:
    rows: Sequence[Mapping[str, Any]] = result.mappings().all()
    return [read(row) for row in rows]


def read(row: Mapping[str, Any]) -> Operation:
    failure, written = row["failure"], row["written"]
    return Operation(
        tenant=row["tenant"],
        id=row["id"],
        position=row["position"],
        connection=row["connection"],
        action=row["action"],
        arguments=row["arguments"],
        key=row["idempotency_key"],
        author=row["author"],
        cause=row["cause"],
        ordering_key=row["ordering_key"],
        receives=row["receives"],
        create_time=row["create_time"],
        state_time=row["state_time"],
        changes=row["changes"],
        claim=row["claim"],
        timeout=row["timeout_seconds"],
        attempt_until=row["attempt_until"],
        progress=Progress(
            state=State(row["state"]),
            due=row["due_time"],
            start_deadline=row["start_deadline"],
            repeats=Repeats(row["repeats"]),
            attempts=row["attempts"],
            faults=row["faults"],
            waits=row["waits"],
            asks=row["asks"],
            uncertain=row["uncertain"],
            away=row["away"],
            cancel_wanted=row["cancel_wanted"],
            resolved=row["resolved"],
            pending_id=row["pending_id"],
            output=row["output"],
            failure=None if failure is None else Failure.FromString(failure),
            written=() if written is None else tuple(ExecuteResponse.FromString(written).written),
        ),
    )
