"""The only place that begins and ends transactions.

Every transaction says whose rows it is about. That list lives in the transaction (`set_config(…, true)`):
it ends with it, whatever happens, and the next user of the connection starts with nobody's rows.
"""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from foundation.store.connection import connect
from foundation.store.errors import StatementFailed
from foundation.store.revisions import SchemaAge, age, age_query
from foundation.store.schemas import Schema
from foundation.store.translation import typed_errors
from foundation.store.url import DatabaseUrl

_UNDEFINED = frozenset({"42P01", "3F000"})

# The server writes the array literal that the policies read back, so no tenant's name can break out of it.
_BEGIN = text("""
    select set_config('tieline.tenants', cast(:tenants as text[])::text, true),
           set_config('transaction_read_only', :read_only, true)
""")


def pool_size(cores: int | None) -> int:
    """Connections that keep PostgreSQL busy without queueing inside it: 4 on small machines, 12 on big ones."""
    return min(12, max(4, 2 * (cores or 1)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one process may take of the database. Times are in seconds."""

    connections: int = pool_size(os.cpu_count())
    wait_for_connection: float = 5.0
    statement: float = 15.0
    lock: float = 5.0
    idle_in_transaction: float = 30.0

    def settings(self) -> dict[str, str]:
        limits = {
            "statement_timeout": self.statement,
            "lock_timeout": self.lock,
            "idle_in_transaction_session_timeout": self.idle_in_transaction,
        }
        return {name: f"{round(seconds * 1000)}ms" for name, seconds in limits.items()}


class Store:
    """One schema, seen with one role, through a pool that opens connections when they are first needed."""

    def __init__(
        self, url: DatabaseUrl, schema: Schema, *, application: str, bounds: Bounds | None = None
    ) -> None:
        bounds = bounds or Bounds()
        settings = bounds.settings() | {"search_path": schema.name}
        self._schema = schema
        self._engine = create_async_engine(
            "postgresql+asyncpg://",  # the login stays in `url`, which knows how to be printed
            async_creator=partial(connect, url, application=application, settings=settings),
            pool_size=bounds.connections,
            max_overflow=0,
            pool_timeout=bounds.wait_for_connection,
            pool_use_lifo=True,  # a few warm connections, whose prepared statements are warm as well
            hide_parameters=True,
        )
        event.listen(self._engine.sync_engine, "checkout", _replace_if_closed)

    @asynccontextmanager
    async def unit_of_work(
        self, *, tenants: Iterable[str], read_only: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        """A transaction about these tenants' rows, and no others'. Commits at the end, unless it raises.

        An empty list is allowed and reads nothing. Raises `StoreError`s only, besides what the body raises.
        """
        if isinstance(tenants, str):
            raise TypeError("tenants is a list of names, not one name")
        with typed_errors():
            async with self._engine.begin() as connection:
                scope = {"tenants": list(tenants), "read_only": "on" if read_only else "off"}
                await connection.execute(_BEGIN, scope)
                yield connection

    def across_tenants(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """For a worker's role, whose policies ask for no tenant. With a service's role it sees nothing."""
        return self.unit_of_work(tenants=())

    async def age(self) -> SchemaAge:
        try:
            async with self.unit_of_work(tenants=(), read_only=True) as work:
                row = (await work.execute(text(age_query(self._schema)))).one_or_none()
        except StatementFailed as error:
            if error.sqlstate not in _UNDEFINED:
                raise
            row = None
        return age(self._schema, None if row is None else (row[0], row[1]))

    async def aclose(self) -> None:
        await self._engine.dispose()


def _replace_if_closed(connection: Any, _record: object, _proxy: object) -> None:
    # After a restart of PostgreSQL every pooled connection is dead, and asyncpg knows it without asking.
    if connection.driver_connection.is_closed():
        raise DisconnectionError
