"""Who holds what, how often that changed, and which requests to record were answered already."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import platform_table, tenant_table

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)


def text(name: str, **options: object) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **options)  # type: ignore[arg-type]


def upgrade() -> None:
    schema = context.config.attributes["schema"].name
    tenant_table(
        "leases",
        text("id"),
        text("credential"),
        text("grant_id"),
        text("holder"),
        text("subject"),
        text("slot"),
        text("entry"),
        text("purpose"),
        sa.Column("version", sa.BigInteger, nullable=False),
        text("account"),
        text("state"),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("expires_at", TIME, nullable=False),
        # Whether other versions that are still accepted were given with it.
        sa.Column("beside", sa.Boolean, nullable=False),
        key=("id",),
        service=("select", "insert", "update", "delete"),
        worker=("select", "delete"),
    )
    what = ["tenant", "credential", "holder", "subject", "slot", "entry", "purpose", "version"]
    # A revoked one stays until its time is over, so that its holder is told; beside it there may be a new one.
    op.create_index(
        "leases_once",
        "leases",
        what,
        unique=True,
        schema=schema,
        postgresql_where=sa.text("state <> 'REVOKED'"),
    )
    op.create_index("leases_of_holder", "leases", ["holder"], schema=schema)
    platform_table(
        "lease_changes",
        sa.Column("only_row", sa.Boolean, sa.CheckConstraint("only_row"), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        reason="how often a lease was outdated, revoked or given back, whoever's it was",
        service=("select", "update"),
        worker=("select",),
    )
    op.bulk_insert(
        sa.table("lease_changes", sa.column("only_row"), sa.column("generation"), schema=schema),
        [{"only_row": True, "generation": 0}],
    )
    platform_table(
        "audit_requests",
        text("caller", primary_key=True),
        text("request_id", primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("sequences", sa.ARRAY(sa.BigInteger), nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
        reason="a service's request names the tenants of its records one by one",
        service=("select", "insert", "update"),
        worker=("select", "delete"),
    )
