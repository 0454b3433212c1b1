"""Queries about the accounts of apps that connections receive for: proven by a credential, or approved.

Only what receives has a row, and an account of an app has one row at most, whoever asks: whoever was first has it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.connections.connection import Connection

_HOLD = text("""
    select instance from connections
    where tenant = :tenant and id = :id and instance = :instance and revision = :revision and state <> 'deleting'
    for share
""")
_END = text("""
    delete from account_keys
    where instance = :instance
      and (app <> :app or account_key <> all (cast(:wanted as text[]))
           or (claim = 'proven' and account_key <> all (cast(:proven as text[]))))
""")
_PROVE = text("""
    insert into account_keys (app, account_key, instance, claim)
    select :app, key, :instance, 'proven'
    from unnest(cast(:proven as text[])) as key
    where key = any (cast(:wanted as text[])) order by key
    on conflict do nothing
""")
_APPROVE = text("""
    insert into account_keys (app, account_key, instance, claim)
    values (:app, :key, :instance, 'approved') on conflict do nothing
""")
_APPROVED = text("""
    update account_keys set claim = 'approved' where app = :app and account_key = :key and instance = :instance
""")


async def hold(work: AsyncConnection, connection: Connection) -> bool:
    """Until the transaction ends nobody changes what it names; false if somebody has."""
    row = _row(connection) | {
        "tenant": connection.tenant,
        "id": connection.id,
        "revision": connection.revision,
    }
    return (await work.execute(_HOLD, row)).one_or_none() is not None


async def prove(work: AsyncConnection, connection: Connection, proven: Collection[str]) -> bool:
    """With the worker's role: these it controls, so of those that it names it receives these, and no others that it had.

    Whether anything is different now. An account that another connection receives for stays with that one.
    """
    row = _row(connection) | {
        "wanted": [one.key for one in connection.wanted.account_keys],
        "proven": sorted(set(proven)),
    }
    ended = (await work.execute(_END, row)).rowcount
    made = (await work.execute(_PROVE, row)).rowcount if connection.wanted.app else 0
    return bool(ended or made)


async def approve(work: AsyncConnection, connection: Connection, key: str) -> bool:
    """False where another connection receives for it."""
    row = _row(connection) | {"key": key}
    await work.execute(_APPROVE, row)
    return bool((await work.execute(_APPROVED, row)).rowcount)


def _row(connection: Connection) -> dict[str, Any]:
    return {"instance": connection.instance, "app": connection.wanted.app}
