"""Plugins that run elsewhere: tokens to join with, and the processes that did."""

import sqlalchemy as sa

from foundation.store.tenancy import platform_table

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    platform_table(
        "join_tokens",
        sa.Column("hash", sa.LargeBinary, primary_key=True),
        sa.Column("plugin", name, nullable=False),
        sa.Column("version_range", sa.Text, nullable=False),
        sa.Column("expire_time", moment, nullable=False),
        sa.Column("use_time", moment),
        sa.Column("request", sa.LargeBinary),
        sa.Column("certificates", sa.Text),
        sa.Column("process", name),
        reason="plugins belong to no tenant",
        service=["select", "insert", "update", "delete"],
        worker=["select", "insert", "update", "delete"],
    )
    platform_table(
        "remote_processes",
        sa.Column("name", name, primary_key=True),
        sa.Column("plugin", name, nullable=False),
        sa.Column("version", name, nullable=False),
        sa.Column("address", sa.Text),
        sa.Column("join_time", moment, nullable=False),
        sa.Column("announce_time", moment),
        sa.Column("restart_wanted", sa.Boolean, nullable=False, server_default="false"),
        reason="plugins belong to no tenant",
        service=["select", "insert", "update", "delete"],
        worker=["select", "insert", "update", "delete"],
    )
