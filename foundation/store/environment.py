"""The body of every service's `migrations/env.py`.

The connection, its transaction, its lock and its role come from `upgrade`; nothing here begins or ends one.
"""

from alembic import context

from foundation.store.schemas import VERSION_TABLE, Schema


def run() -> None:
    schema: Schema = context.config.attributes["schema"]
    context.configure(
        connection=context.config.attributes["connection"],
        version_table=VERSION_TABLE,
        version_table_schema=schema.name,
    )
    with context.begin_transaction():
        context.run_migrations()
