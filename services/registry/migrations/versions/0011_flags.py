"""Feature flags: what is on for whom, and how far connections follow."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    platform_table(
        "flags",
        sa.Column("id", sa.Text(collation="C"), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("followed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("removed", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text(collation="C")),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False),
        reason="a flag speaks of many tenants",
        service=["select", "insert", "update"],
        worker=["select", "update", "delete"],
    )
    op.create_index(
        "flags_request",
        "flags",
        ["request_id"],
        schema=schema.name,
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    )
