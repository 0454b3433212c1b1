"""When what is polled, by whom at the moment, and how that goes."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.identifiers import plain
from foundation.store.tenancy import tenant_table

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment, name = sa.TIMESTAMP(timezone=True), sa.Text(collation="C")
    tenant_table(
        "schedules",
        sa.Column("connection", name, nullable=False),
        sa.Column("id", name, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("stream", name, nullable=False),
        sa.Column("partition", name, nullable=False, server_default=""),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("slot_entry", sa.Text, nullable=False, server_default=""),
        sa.Column("partition_state", sa.LargeBinary, nullable=False, server_default=""),
        # How far it was read stands in the checkpoints under this name.
        sa.Column("place", name, nullable=False),
        sa.Column("phase", sa.Double, nullable=False),
        sa.Column("interval_seconds", sa.Double, nullable=False),
        sa.Column("gap_seconds", sa.Double, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="waiting"),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("gone", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("next_time", moment, nullable=False),
        sa.Column("last_start_time", moment),
        sa.Column("last_success_time", moment),
        sa.Column("records", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("owner", name),
        sa.Column("lease_time", moment),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("again", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("spread", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("backfill", name),
        sa.Column("window_start", moment),
        sa.Column("window_end", moment),
        sa.Column("request_id", name),
        sa.Column("create_time", moment, nullable=False, server_default=sa.text("now()")),
        sa.Column("end_time", moment),
        key=["connection", "id"],
        service=["select", "insert", "update"],
        worker=["select", "insert", "update", "delete"],
    )
    waiting = sa.text("state in ('waiting', 'throttled', 'failing')")
    op.create_index("schedules_due", "schedules", ["next_time"], schema=schema.name, postgresql_where=waiting)
    op.create_index(
        "schedules_leased",
        "schedules",
        ["owner"],
        schema=schema.name,
        postgresql_where=sa.text("owner is not null"),
    )
    op.create_index(
        "schedules_request",
        "schedules",
        ["tenant", "request_id"],
        schema=schema.name,
        postgresql_where=sa.text("request_id is not null"),
    )
    # What a connection's schedules were last brought in line with.
    tenant_table(
        "plans",
        sa.Column("connection", name, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("digest", name, nullable=False),
        key=["connection"],
        service=["select"],
        worker=["select", "insert", "update", "delete"],
    )
    # Where to begin without a cursor, and when the newest of what was read happened.
    op.add_column("checkpoints", sa.Column("start_time", moment), schema=schema.name)
    op.add_column("checkpoints", sa.Column("last_record_time", moment), schema=schema.name)
    op.execute(f"grant delete on {plain(schema.name)}.checkpoints to {plain(schema.worker)}")
