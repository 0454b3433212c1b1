"""Brings schemas up to the head that this code knows.

Most starts find nothing to do, and must find out fast: Alembic is imported only where a schema is old.
"""

from collections.abc import Sequence

import asyncpg

from foundation.store.connection import connect
from foundation.store.revisions import SchemaAge, age, age_query
from foundation.store.schemas import SCHEMAS, Schema
from foundation.store.url import DatabaseUrl

_NO_TABLE_YET = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


async def migrate(admin: DatabaseUrl, schemas: Sequence[Schema] = SCHEMAS) -> list[str]:
    """The schemas that were changed. `bootstrap` comes first; several may run this at once."""
    old = [schema for schema, found in zip(schemas, await ages(admin, schemas), strict=True) if found.is_old]
    if old:
        from foundation.store.upgrade import upgrade  # noqa: PLC0415  half a second that warm starts save

        for schema in old:
            await upgrade(admin, schema)
    return [schema.name for schema in old]


async def ages(admin: DatabaseUrl, schemas: Sequence[Schema] = SCHEMAS) -> list[SchemaAge]:
    connection = await connect(admin, application="tieline-migrate")
    try:
        return [await _age(connection, schema) for schema in schemas]
    finally:
        await connection.close()


async def _age(connection: "asyncpg.Connection[asyncpg.Record]", schema: Schema) -> SchemaAge:
    try:
        row = await connection.fetchrow(age_query(schema))
    except _NO_TABLE_YET:
        row = None
    return age(schema, None if row is None else (row[0], row[1]))
