"""Operations: what was submitted, how it stands, and who is at it."""

import sqlalchemy as sa
from alembic import context, op

from foundation.store.tenancy import tenant_table

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    schema = context.config.attributes["schema"]
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    tenant_table(
        "operations",
        sa.Column("id", name, nullable=False),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("connection", name, nullable=False),
        sa.Column("action", name, nullable=False),
        sa.Column("arguments", sa.LargeBinary, nullable=False),
        sa.Column("idempotency_key", name, nullable=False),
        sa.Column("key_held", sa.Boolean, nullable=False, server_default="true"),
        sa.Column("repeats", sa.Text, nullable=False),
        sa.Column("timeout_seconds", sa.Double, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("ordering_key", name, nullable=False),
        sa.Column("start_deadline", moment, nullable=False),
        sa.Column("create_time", moment, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_time", moment, nullable=False),
        sa.Column("due_time", moment),
        sa.Column("output", sa.LargeBinary),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("written", sa.LargeBinary),
        sa.Column("pending_id", sa.Text, nullable=False, server_default=""),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("faults", sa.Integer, nullable=False, server_default="0"),
        sa.Column("waits", sa.Integer, nullable=False, server_default="0"),
        sa.Column("asks", sa.Integer, nullable=False, server_default="0"),
        sa.Column("uncertain", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("away", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("cancel_wanted", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("resolved", sa.Boolean),
        sa.Column("changes", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("claim", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("owner", name),
        sa.Column("lease_time", moment),
        sa.Column("attempt_until", moment),
        key=["id"],
        service=["select", "insert", "update"],
        worker=["select", "update", "delete"],
    )

    def index(what: str, columns: list[str], *, where: str | None = None, unique: bool = False) -> None:
        op.create_index(
            f"operations_{what}",
            "operations",
            columns,
            schema=schema.name,
            unique=unique,
            postgresql_where=None if where is None else sa.text(where),
        )

    index("key", ["tenant", "connection", "action", "idempotency_key"], where="key_held", unique=True)
    index("held", ["create_time"], where="key_held")
    index("newest", ["tenant", "position"])
    lane = ["tenant", "connection", "action", "position"]
    index("lane", lane, where="state = 'queued' and ordering_key = ''")
    index("ordered_lane", lane, where="state = 'queued' and ordering_key <> ''")
    index("lanes", lane[:3], where="state = 'queued'")
    index("order", ["tenant", "connection", "ordering_key", "position"], where=_OPEN)
    index("deadline", ["start_deadline"], where="state = 'queued'")
    index("owned", ["lease_time"], where="owner is not null")
    index("asked", ["due_time"], where="state in ('pending', 'ambiguous')")
    index("state", ["state"], where="state not in ('succeeded', 'failed', 'cancelled')")
    index("ended", ["state_time"], where="state in ('succeeded', 'failed', 'cancelled', 'dead_lettered')")
    # What is not done for a lane at the moment: its provider, or its plugin, is away.
    tenant_table(
        "operation_lanes",
        sa.Column("connection", name, nullable=False),
        sa.Column("action", name, nullable=False),
        sa.Column("waits", sa.Integer, nullable=False),
        sa.Column("held_until", moment, nullable=False),
        key=["connection", "action"],
        service=["select", "delete"],
        worker=["select", "insert", "update", "delete"],
    )


_OPEN = "state in ('queued', 'running', 'pending', 'ambiguous') and ordering_key <> ''"
