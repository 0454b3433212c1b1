"""What replicas tell of themselves, so that each answers for all; and what they ask of each other."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment, name, now = sa.TIMESTAMP(timezone=True), sa.Text(collation="C"), sa.text("now()")
    every = ["select", "insert", "update", "delete"]
    reason = "plugin processes belong to no tenant"
    platform_table(
        "replicas",
        sa.Column("id", name, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        # Of the machine and the process on it: who is started there can tell whether it still lives.
        sa.Column("machine", name, nullable=False),
        sa.Column("process", name, nullable=False),
        sa.Column("start_time", moment, nullable=False, server_default=now),
        sa.Column("heartbeat_time", moment, nullable=False, server_default=now),
        reason=reason,
        service=["select"],
        worker=every,
    )
    platform_table(
        "replica_processes",
        sa.Column("replica", name, primary_key=True),
        sa.Column("name", name, primary_key=True),
        sa.Column("described", sa.LargeBinary, nullable=False),
        reason=reason,
        service=["select"],
        worker=every,
    )
    platform_table(
        "replica_orders",
        sa.Column("id", name, primary_key=True),
        sa.Column("replica", name, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("resource", name, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("create_time", moment, nullable=False, server_default=now),
        sa.Column("begin_time", moment),
        sa.Column("end_time", moment),
        sa.Column("outcome", sa.LargeBinary),
        sa.Column("problem", sa.Text),
        reason=reason,
        service=["select"],
        worker=every,
    )
    op.create_index(
        "replica_orders_open",
        "replica_orders",
        ["replica"],
        schema=schema.name,
        postgresql_where=sa.text("begin_time is null"),
    )
    platform_table(
        "rollouts",
        sa.Column("name", name, primary_key=True),
        sa.Column("plugin", name, nullable=False),
        sa.Column("replica", name, nullable=False),
        sa.Column("is_over", sa.Boolean, nullable=False),
        sa.Column("described", sa.LargeBinary, nullable=False),
        sa.Column("create_time", moment, nullable=False, server_default=now),
        reason="plugins belong to no tenant",
        service=["select"],
        worker=every,
    )
    # Of two replicas that upgrade a plugin at once, one does.
    op.create_index(
        "rollouts_under_way",
        "rollouts",
        ["plugin"],
        schema=schema.name,
        unique=True,
        postgresql_where=sa.text("not is_over"),
    )
    # Grows with each shift that somebody wanted, which all replicas follow; what one falls back to is its own affair.
    op.add_column(
        "plugin_tracks",
        sa.Column("shifts", sa.BigInteger, nullable=False, server_default="0"),
        schema=schema.name,
    )
