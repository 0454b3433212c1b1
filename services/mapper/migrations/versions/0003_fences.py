"""Who polls which part of a stream, as a number: the lower one has been taken over from."""

import sqlalchemy as sa

from foundation.store.tenancy import tenant_table

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    name = sa.Text(collation="C")
    tenant_table(
        "fences",
        sa.Column("connection", name, nullable=False),
        sa.Column("stream", name, nullable=False),
        sa.Column("partition", name, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        key=["connection", "stream", "partition"],
        service=["select", "insert", "update"],
    )
