"""A tenant table as services will have them, for the tests of everything that rules one."""

import sqlalchemy as sa

from foundation.store.tenancy import tenant_table

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    tenant_table(
        "notes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column(
            "body", sa.Text, sa.CheckConstraint("body <> ''", name="notes_say_something"), nullable=False
        ),
        key=["id"],
        service=["select", "insert", "update", "delete"],
        worker=["select", "delete"],
    )
