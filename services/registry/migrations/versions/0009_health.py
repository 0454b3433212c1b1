"""How each connection is, as far as it must outlast a process; what replicas tell each other of it; alarms."""

import sqlalchemy as sa

from foundation.notices.table import notices_table
from foundation.store.tenancy import tenant_table

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    moment = sa.TIMESTAMP(timezone=True)
    name = sa.Text(collation="C")
    notices_table()
    tenant_table(
        "connection_health",
        sa.Column("connection", name, nullable=False),
        sa.Column("health", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("health_time", moment, nullable=False),
        sa.Column("instance", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("failure", sa.LargeBinary),
        sa.Column("check_time", moment),
        sa.Column("next_check_time", moment, nullable=False),
        sa.Column("misses", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("last_event_time", moment),
        key=["connection"],
        service=["select"],
        worker=["select", "insert", "update", "delete"],
    )
    tenant_table(
        "health_reports",
        sa.Column("connection", name, nullable=False),
        sa.Column("replica", name, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("report_time", moment, nullable=False),
        key=["connection", "replica"],
        service=["select"],
        worker=["select", "insert", "update", "delete"],
    )
    tenant_table(
        "alarms",
        sa.Column("subject", name, nullable=False),
        sa.Column("kind", name, nullable=False),
        sa.Column("since", moment, nullable=False),
        key=["subject", "kind"],
        service=["select"],
        worker=["select", "insert", "delete"],
    )
