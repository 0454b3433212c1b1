"""The table that a service keeps its notices in: for its migrations, which alone need what migrations are written with."""

from __future__ import annotations

import sqlalchemy as sa

from foundation.store.tenancy import tenant_table


def notices_table() -> None:
    tenant_table(
        "notices",
        sa.Column("number", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        key=("number",),
        service=("select", "insert"),
        worker=("select", "insert", "delete"),
    )
