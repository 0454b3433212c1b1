"""What the life of a connection is kept in: who applies it, what each revision came to, what requests were answered."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import open_to_owner, tenant_table

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")

    def connection_column(column: sa.Column[object]) -> None:
        op.add_column("connections", column, schema=schema.name)

    # Grows with every change that somebody makes; an etag names it.
    connection_column(sa.Column("edition", sa.BigInteger, nullable=False, server_default="1"))
    connection_column(sa.Column("proven_accounts", sa.ARRAY(sa.Text), nullable=False, server_default="{}"))
    connection_column(sa.Column("claim_owner", name))
    connection_column(sa.Column("claim_until", moment))
    connection_column(sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
    connection_column(sa.Column("next_try", moment, nullable=False, server_default=sa.func.now()))
    # When its grants are to be compared with what it wants; null: they are as they should be.
    connection_column(sa.Column("tidy_after", moment))
    revisions = f"{schema.name}.connection_revisions"
    for column in (
        sa.Column("application", sa.Text, nullable=False, server_default="pending"),
        sa.Column("rollback_of", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("migrated_from", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("connection_revisions", column, schema=schema.name)
    with open_to_owner("connection_revisions"), open_to_owner("connections"):
        op.execute(f"""
            update {revisions} r set application = c.application from {schema.name}.connections c
            where c.tenant = r.tenant and c.id = r.connection and c.revision = r.revision
        """)  # noqa: S608 - constants of ours
    tenant_table(
        "connection_requests",
        sa.Column("request_id", name, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("connection", name, nullable=False),
        sa.Column("create_time", moment, nullable=False),
        key=["request_id"],
        service=["select", "insert"],
        worker=["select", "delete"],
    )
    # What was wanted never changes; how it went does.
    op.execute(f"grant update (application) on {revisions} to {schema.service}, {schema.worker}")
    op.execute(f"grant insert on {revisions} to {schema.worker}")
    op.execute(f"grant insert on {schema.name}.endpoints to {schema.worker}")
    for table in ("connections", "connection_revisions", "endpoints", "checkpoints"):
        op.execute(f"grant delete on {schema.name}.{table} to {schema.worker}")
    op.create_index(
        "connections_to_apply",
        "connections",
        ["next_try"],
        schema=schema.name,
        postgresql_where=sa.text("application in ('pending', 'applying')"),
    )
    op.create_index(
        "connections_claimed",
        "connections",
        ["claim_owner"],
        schema=schema.name,
        postgresql_where=sa.text("claim_owner is not null"),
    )
