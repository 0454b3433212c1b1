"""Apps that many tenants share, where their deliveries arrive, and whose accounts are whose."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    platform_table(
        "apps",
        sa.Column("id", name, primary_key=True),
        sa.Column("instance", name, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("settings", sa.LargeBinary, nullable=False),
        sa.Column("edition", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("request_id", name),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("create_time", moment, nullable=False),
        reason="an app is shared by many tenants",
        service=["select", "insert", "update"],
        worker=["select", "update", "delete"],
    )
    op.create_index(
        "apps_request",
        "apps",
        ["request_id"],
        schema=schema.name,
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    )
    platform_table(
        "app_endpoints",
        sa.Column("app", name, nullable=False),
        sa.Column("webhook", name, nullable=False),
        sa.Column("endpoint", name, nullable=False, unique=True),
        sa.PrimaryKeyConstraint("app", "webhook"),
        reason="an app's endpoint is shared by many tenants",
        service=["select", "insert"],
        worker=["select", "delete"],
    )
    op.add_column(
        "connection_revisions",
        sa.Column("app", name, nullable=False, server_default=""),
        schema=schema.name,
    )
    # When its accounts are asked about again; null: it names none.
    op.add_column("connections", sa.Column("prove_after", moment), schema=schema.name)
    op.create_index(
        "connections_to_prove",
        "connections",
        ["prove_after"],
        schema=schema.name,
        postgresql_where=sa.text("prove_after is not null"),
    )
    # Only keys that receive: two tenants cannot have one account of an app, whoever is first. The row is a
    # connection's by its instance, so that nobody reads in it who the other one is.
    platform_table(
        "account_keys",
        sa.Column("app", name, nullable=False),
        sa.Column("account_key", name, nullable=False),
        sa.Column("instance", name, nullable=False),
        sa.Column("claim", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("app", "account_key"),
        reason="an account is one tenant's at most, and its row names no tenant",
        service=["select", "insert", "update"],
        worker=["select", "insert", "update", "delete"],
    )
    op.create_index("account_keys_of", "account_keys", ["instance", "app"], schema=schema.name)
