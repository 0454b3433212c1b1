"""How far each part of a stream was read, and who may say so."""

import sqlalchemy as sa

from foundation.store.tenancy import tenant_table

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    tenant_table(
        "checkpoints",
        sa.Column("connection", name, nullable=False),
        sa.Column("stream", name, nullable=False),
        sa.Column("partition", name, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", name, nullable=False),
        sa.Column("claim_time", moment, nullable=False),
        sa.Column("cursor", sa.LargeBinary, nullable=False, server_default=""),
        sa.Column("cursor_version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("store_time", moment),
        key=["connection", "stream", "partition"],
        service=["select"],
        worker=["select", "insert", "update"],
    )
