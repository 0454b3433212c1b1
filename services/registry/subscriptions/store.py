"""All queries of subscriptions. Transactions are begun and ended by whoever calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.subscriptions.subscription import Step, Subscription
from tieline.common.v1.failure_pb2 import Failure

_READ = """
    select tenant, connection, webhook, instance, number, step, operation, url, subscription_id, expire_time,
           renew_time, due_time, failures, failure from subscriptions
"""
_ALL = text(f"{_READ} order by tenant, connection, webhook")
_OF = text(f"{_READ} where tenant = :tenant and connection = :connection order by webhook")
_INSERT = text("""
    insert into subscriptions (tenant, connection, webhook, instance, number, step, operation, url,
                               subscription_id, expire_time, renew_time, due_time, failures, failure)
    values (:tenant, :connection, :webhook, :instance, :number, :step, :operation, :url, :subscription_id,
            :expire_time, :renew_time, :due, :failures, :failure)
    on conflict do nothing
""")
# Two replicas may look at the same step: one of them goes on, the other looks again.
_UPDATE = text("""
    update subscriptions set number = :number, step = :step, operation = :operation, url = :url,
        subscription_id = :subscription_id, expire_time = :expire_time, renew_time = :renew_time, due_time = :due,
        failures = :failures, failure = :failure
    where tenant = :tenant and connection = :connection and webhook = :webhook and instance = :instance
      and number = :was_number and step = :was_step and operation is not distinct from :was_operation
""")
_DELETE = text("delete from subscriptions where tenant = :tenant and connection = :connection")


async def everything(work: AsyncConnection) -> list[Subscription]:
    """With the worker's role: those of every tenant."""
    return _many(await work.execute(_ALL))


async def of(work: AsyncConnection, tenant: str, connection: str) -> list[Subscription]:
    return _many(await work.execute(_OF, {"tenant": tenant, "connection": connection}))


async def insert(work: AsyncConnection, one: Subscription) -> None:
    await work.execute(_INSERT, _row(one))


async def update(work: AsyncConnection, was: Subscription, now: Subscription) -> bool:
    """False if somebody else has gone on with it meanwhile."""
    before = {"was_number": was.number, "was_step": was.step.value, "was_operation": was.operation}
    return bool((await work.execute(_UPDATE, _row(now) | before)).rowcount)


async def delete(work: AsyncConnection, tenant: str, connection: str) -> None:
    await work.execute(_DELETE, {"tenant": tenant, "connection": connection})


def _row(one: Subscription) -> dict[str, Any]:
    moments: dict[str, datetime | None] = {
        "expire_time": one.expire_time,
        "renew_time": one.renew_time,
        "due": one.due,
    }
    return moments | {
        "tenant": one.tenant,
        "connection": one.connection,
        "webhook": one.webhook,
        "instance": one.instance,
        "number": one.number,
        "step": one.step.value,
        "operation": one.operation,
        "url": one.url,
        "subscription_id": one.subscription_id,
        "failures": one.failures,
        "failure": None if one.failure is None else one.failure.SerializeToString(deterministic=True),
    }


def _many(result: Any) -> list[Subscription]:
    rows: Sequence[Mapping[str, Any]] = result.mappings().all()
    return [_read(row) for row in rows]


def _read(row: Mapping[str, Any]) -> Subscription:
    failure = row["failure"]
    return Subscription(
        tenant=row["tenant"],
        connection=row["connection"],
        webhook=row["webhook"],
        instance=row["instance"],
        number=row["number"],
        step=Step(row["step"]),
        operation=row["operation"],
        url=row["url"],
        subscription_id=row["subscription_id"],
        expire_time=row["expire_time"],
        renew_time=row["renew_time"],
        due=row["due_time"],
        failures=row["failures"],
        failure=None if failure is None else Failure.FromString(failure),
    )
