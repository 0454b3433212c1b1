"""Connections, their revisions, and the endpoints that their providers post to."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table, tenant_table

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment = sa.TIMESTAMP(timezone=True)
    tenant_table(
        "connections",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("instance", sa.Text(collation="C"), nullable=False),
        sa.Column("plugin", sa.Text(collation="C"), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("applied_revision", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_time", moment, nullable=False),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("application", sa.Text, nullable=False),
        sa.Column("application_failure", sa.LargeBinary),
        sa.Column("resolved_version", sa.Text, nullable=False, server_default=""),
        sa.Column("request_id", sa.Text(collation="C")),
        sa.Column("create_time", moment, nullable=False),
        sa.Column("update_time", moment, nullable=False),
        key=["id"],
        service=["select", "insert", "update"],
        worker=["select", "update"],
    )
    op.create_index(
        "connections_request",
        "connections",
        ["tenant", "request_id"],
        schema=schema.name,
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    )
    tenant_table(
        "connection_revisions",
        sa.Column("connection", sa.Text(collation="C"), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("wanted", sa.LargeBinary, nullable=False),
        sa.Column("settings_version", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("create_time", moment, nullable=False),
        key=["connection", "revision"],
        service=["select", "insert"],
        worker=["select"],
    )
    tenant_table(
        "endpoints",
        sa.Column("connection", sa.Text(collation="C"), nullable=False),
        sa.Column("webhook", sa.Text(collation="C"), nullable=False),
        sa.Column("endpoint", sa.Text(collation="C"), nullable=False),
        key=["connection", "webhook"],
        service=["select", "insert"],
        worker=["select"],
    )
    # Grows in the transaction of every change, so whoever sees the number sees what made it grow.
    platform_table(
        "picture",
        sa.Column("only_row", sa.Boolean, sa.CheckConstraint("only_row"), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        reason="how often anything changed that the data plane must know",
        service=["select", "update"],
        worker=["select", "update"],
    )
    op.bulk_insert(
        sa.table("picture", sa.column("only_row"), sa.column("generation"), schema=schema.name),
        [{"only_row": True, "generation": 0}],
    )
