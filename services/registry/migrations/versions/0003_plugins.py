"""What people decided about plugins: the status of a version, and which version serves."""

import sqlalchemy as sa

from foundation.store.tenancy import platform_table

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    moment = sa.TIMESTAMP(timezone=True)
    platform_table(
        "plugin_versions",
        sa.Column("plugin", sa.Text(collation="C"), primary_key=True),
        sa.Column("version", sa.Text(collation="C"), primary_key=True),
        sa.Column("status", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("create_time", moment, nullable=False),
        reason="the catalogue belongs to no tenant",
        service=["select", "insert", "update"],
        worker=["select", "insert", "update"],
    )
    platform_table(
        "plugin_tracks",
        sa.Column("plugin", sa.Text(collation="C"), primary_key=True),
        sa.Column("version", sa.Text(collation="C"), nullable=False),
        sa.Column("update_time", moment, nullable=False),
        reason="which version of a plugin serves whoever pins none",
        service=["select", "insert", "update"],
        worker=["select", "insert", "update"],
    )
