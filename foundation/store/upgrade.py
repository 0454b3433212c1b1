"""Runs Alembic for one schema: one lock, one transaction, as the schema's owner.

Everything pending is one transaction, so a migration that fails leaves nothing behind, its predecessors of
the same run included. What cannot live in a transaction (an index built concurrently) is not a migration.
"""

from functools import partial

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from foundation.store.connection import connect
from foundation.store.errors import MigrationFailed
from foundation.store.identifiers import plain
from foundation.store.schemas import Schema
from foundation.store.translation import translate
from foundation.store.url import DatabaseUrl

_LOCK = text("select pg_advisory_xact_lock(hashtext('tieline'), hashtext(:schema))")
# Waiting for another starter is normal. Waiting for a table is not: behind the waiting ALTER everybody who
# wants to read would wait too, so it gives up soon and is tried again at a quieter moment.
_PATIENCE_WITH_STARTERS = "300s"
_PATIENCE_WITH_TABLES = "10s"


async def upgrade(admin: DatabaseUrl, schema: Schema) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        async_creator=partial(connect, admin, application="tieline-migrate"),
        hide_parameters=True,
    )
    try:
        async with engine.begin() as connection:
            await _become_owner(connection, schema)
            await connection.run_sync(_run_alembic, schema)
    except DBAPIError as error:
        failure = MigrationFailed(f"schema {schema.name}: {translate(error)}")
        raise failure.with_traceback(error.__traceback__) from None
    finally:
        await engine.dispose()


async def _become_owner(connection: AsyncConnection, schema: Schema) -> None:
    if await connection.scalar(text("select to_regrole(:owner)"), {"owner": schema.owner}) is None:
        raise MigrationFailed(f"schema {schema.name} has no owner yet: bootstrap the database first")
    await connection.execute(text(f"set local lock_timeout = '{_PATIENCE_WITH_STARTERS}'"))
    await connection.execute(_LOCK, {"schema": schema.name})
    await connection.execute(text(f"set local lock_timeout = '{_PATIENCE_WITH_TABLES}'"))
    await connection.execute(text(f"set local search_path = {plain(schema.name)}"))
    await connection.execute(text(f"set local role {plain(schema.owner)}"))


def _run_alembic(connection: Connection, schema: Schema) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations).replace("%", "%%"))
    config.attributes.update(connection=connection, schema=schema)
    command.upgrade(config, "head")
