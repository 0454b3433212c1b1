"""Webhook subscriptions at providers; and operations that belong to receiving, which go on while a connection rests."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import tenant_table

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    op.add_column(
        "operations",
        sa.Column("receives", sa.Boolean, nullable=False, server_default="false"),
        schema=schema.name,
    )
    tenant_table(
        "subscriptions",
        sa.Column("connection", name, nullable=False),
        sa.Column("webhook", name, nullable=False),
        sa.Column("instance", name, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("operation", name),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("subscription_id", sa.Text, nullable=False, server_default=""),
        sa.Column("expire_time", moment),
        sa.Column("renew_time", moment),
        sa.Column("due_time", moment, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failure", sa.LargeBinary),
        key=["connection", "webhook"],
        service=["select"],
        worker=["select", "insert", "update", "delete"],
    )
