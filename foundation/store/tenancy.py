"""What migrations are written with: tables whose rows belong to tenants.

These functions are part of history: an old migration must do tomorrow what it did yesterday. They may learn
more, they may not do otherwise.

A migration that must touch rows of existing tables runs as the owner, for whom forced row-level security
shows nothing at all: an UPDATE "succeeds" with no rows. The recipe is `with open_to_owner("inbox"): ...`,
which lifts the force for the owner alone and inside this transaction. It locks the table against everybody;
where that would take longer than a pause, let the worker role do the work in batches after the release.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from foundation.store.identifiers import plain
from foundation.store.policies import (
    PRIVILEGES,
    SERVICE_POLICY,
    TENANT,
    WORKER_POLICY,
    tenants_of_this_transaction,
)
from foundation.store.schemas import VERSION_TABLE, Schema


def lay_conventions() -> None:
    """The first migration of every service: how this schema knows whose transaction it is in.

    `tieline.tenants` is unknown on a fresh connection and '' on one that has been used; both are null here,
    and `= any (null)` holds for no row. The text is an array literal that the server itself has written.
    """
    schema = _schema()
    name, readers = plain(schema.name), ", ".join(map(plain, schema.logins))
    op.execute(f"""
        create function {name}.tenants() returns text[] language sql stable parallel safe
        return nullif(current_setting('tieline.tenants', true), '')::text[]
    """)
    op.execute(f"grant execute on function {name}.tenants() to {readers}")
    op.execute(f"grant select on {name}.{plain(VERSION_TABLE)} to {readers}")


def tenant_table(
    name: str,
    *columns: sa.schema.SchemaItem,
    key: Collection[str],
    service: Collection[str],
    worker: Collection[str] = (),
    **options: Any,
) -> None:
    """A table walled by tenant. `service` and `worker` name privileges; `options` are SQLAlchemy's.

    The tenant column is added, and leads the primary key (`key` names the rest of it).
    Its collation is bytewise: identifiers are compared, never sorted for people, and an index survives a new libc.
    """
    schema = _schema()
    tenant = sa.Column(TENANT, sa.Text(collation="C"), nullable=False)
    primary_key = sa.PrimaryKeyConstraint(TENANT, *key, name=f"{name}_pkey")
    op.create_table(name, tenant, *columns, primary_key, schema=schema.name, **options)
    table = f"{plain(schema.name)}.{plain(name)}"
    op.execute(f"alter table {table} enable row level security")
    op.execute(f"alter table {table} force row level security")
    mine = tenants_of_this_transaction(schema.name)
    _admit(table, schema.service, SERVICE_POLICY, mine, service)
    if worker:
        _admit(table, schema.worker, WORKER_POLICY, "true", worker)


def platform_table(
    name: str,
    *elements: sa.schema.SchemaItem,
    reason: str,
    service: Collection[str],
    worker: Collection[str] = (),
) -> None:
    """A table without a tenant's wall. The reason why it needs none stays with it."""
    schema = _schema()
    op.create_table(name, *elements, schema=schema.name, comment=f"platform: {reason}")
    table = f"{plain(schema.name)}.{plain(name)}"
    for role, privileges in ((schema.service, service), (schema.worker, worker)):
        if privileges:
            op.execute(f"grant {', '.join(sorted(_known(role, privileges)))} on {table} to {plain(role)}")


def _admit(table: str, role: str, policy: str, rows: str, privileges: Collection[str]) -> None:
    granted = ", ".join(sorted(_known(role, privileges)))
    op.execute(f"create policy {policy} on {table} to {plain(role)} using ({rows}) with check ({rows})")
    op.execute(f"grant {granted} on {table} to {plain(role)}")


def _known(role: str, privileges: Collection[str]) -> Collection[str]:
    if not privileges or not PRIVILEGES.issuperset(privileges):
        raise ValueError(f"{role} may be given some of {sorted(PRIVILEGES)}, not {sorted(privileges)}")
    return privileges


@contextmanager
def open_to_owner(name: str) -> Iterator[None]:
    table = f"{plain(_schema().name)}.{plain(name)}"
    op.execute(f"alter table {table} no force row level security")
    yield
    op.execute(f"alter table {table} force row level security")


def oldest_code(revision: str) -> None:
    """Code that does not know this revision must not work with the schema any more: see `SchemaAge`."""
    table = f"{plain(_schema().name)}.{plain(VERSION_TABLE)}"
    op.execute(f"comment on table {table} is 'oldest code: {int(revision):04}'")


def _schema() -> Schema:
    schema: Schema = context.config.attributes["schema"]
    return schema
