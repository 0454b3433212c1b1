"""The same table twice, with the wall between tenants and without."""

import sqlalchemy as sa
from alembic import op

from foundation.store.tenancy import lay_conventions, tenant_table

revision = "0001"
down_revision = None


def upgrade() -> None:
    lay_conventions()
    columns = {"id": sa.Uuid, "body": sa.LargeBinary}
    tenant_table(
        "walled",
        *(sa.Column(name, kind, nullable=False) for name, kind in columns.items()),
        key=["id"],
        service=["select", "insert"],
    )
    op.create_table(
        "unwalled",
        sa.Column("tenant", sa.Text(collation="C"), nullable=False),
        *(sa.Column(name, kind, nullable=False) for name, kind in columns.items()),
        sa.PrimaryKeyConstraint("tenant", "id"),
    )
    op.execute("grant select, insert on unwalled to tieline_bench_service")
