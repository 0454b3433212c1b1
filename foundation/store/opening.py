"""How a service opens its store, and how it knows that the store is fit to be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from foundation.errors import Code, Problem
from foundation.settings import Secret
from foundation.store.errors import StoreError, StoreMisconfigured
from foundation.store.schemas import Schema
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl


@asynccontextmanager
async def open_store(url: Secret, schema: Schema) -> AsyncIterator[Store]:
    """Open nothing yet: connections are made when they are needed, so a process starts without a database."""
    try:
        parsed = DatabaseUrl.parse(url.reveal())
    except StoreMisconfigured as error:
        raise Problem(Code.SETTINGS_INVALID, where="`database_url`", why=str(error)) from None
    store = Store(parsed, schema, application=f"tieline-{schema.name}")
    try:
        yield store
    finally:
        await store.aclose()


async def check_schema(store: Store) -> None:
    """Return if the database answers and has the schema this code needs; raise the problem if not."""
    try:
        age = await store.age()
    except Problem:
        raise
    except StoreError as error:
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="PostgreSQL", why=str(error)) from error
    if not age.serves:
        raise Problem(
            Code.SCHEMA_OUTDATED, schema=age.schema, found=age.actual or "no revision", needed=age.known
        )
