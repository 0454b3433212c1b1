"""What people are told about their credentials, and how often anything changed that the registry must know."""

import sqlalchemy as sa
from alembic import context, op

from foundation.notices.table import notices_table
from foundation.store.tenancy import platform_table

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    notices_table()
    platform_table(
        "covered",
        sa.Column("only_row", sa.Boolean, sa.CheckConstraint("only_row"), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        reason="how often a credential that a grant covers has changed, whoever's it is",
        service=("select", "update"),
        worker=("select", "update"),
    )
    schema = context.config.attributes["schema"]
    op.bulk_insert(
        sa.table("covered", sa.column("only_row"), sa.column("generation"), schema=schema.name),
        [{"only_row": True, "generation": 0}],
    )
