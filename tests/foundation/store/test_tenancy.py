"""Tables that `tenant_table` makes, in shapes that the ledger does not have."""

import asyncpg
import pytest
from sqlalchemy import text

from foundation.store.connection import connect
from foundation.store.migrate import migrate
from foundation.store.schemas import Schema
from foundation.store.walls import gaps
from tests.foundation.store.databases import LEDGER, Database

HEAD = """
import sqlalchemy as sa
from alembic import op
from foundation.store.tenancy import tenant_table

revision, down_revision = "0003", "0002"


def upgrade() -> None:
"""
PARTITIONED = f"""{HEAD}
    tenant_table(
        "events", sa.Column("at", sa.Integer), sa.Column("id", sa.Integer),
        key=["at", "id"], service=["select", "insert"], postgresql_partition_by="range (at)",
    )
    op.execute("create table events_0 partition of events for values from (0) to (100)")
"""
TOO_MUCH = f"""{HEAD}
    tenant_table("loose", sa.Column("id", sa.Integer), key=["id"], service=["select", "truncate"])
"""


async def test_partitions_are_reached_only_through_the_wall(database: Database, growing: Schema) -> None:
    (growing.migrations / "versions" / "0003_events.py").write_text(PARTITIONED)
    await migrate(database.admin, [growing])
    async with database.store(LEDGER.service) as store:
        async with store.unit_of_work(tenants=["acme", "globex"]) as work:
            await work.execute(text("insert into events values ('acme', 1, 1), ('globex', 1, 1)"))
        async with store.unit_of_work(tenants=["acme"]) as work:
            assert (await work.scalars(text("select tenant from events"))).all() == ["acme"]
    raw = await connect(database.url(LEDGER.service), application="tests")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await raw.fetch("select * from ledger.events_0")
    await raw.close()
    assert await gaps(database.admin, [growing]) == []

    admin = await connect(database.admin, application="tests")
    await admin.execute("grant select on ledger.events_0 to tieline_ledger_service")
    await admin.close()
    assert await gaps(database.admin, [growing]) == [
        "ledger: ledger.events_0: tieline_ledger_service may select"
    ]


async def test_what_walks_around_the_wall_cannot_be_granted(database: Database, growing: Schema) -> None:
    (growing.migrations / "versions" / "0003_loose.py").write_text(TOO_MUCH)
    with pytest.raises(ValueError, match="tieline_ledger_service may be given some of"):
        await migrate(database.admin, [growing])
    admin = await connect(database.admin, application="tests")
    assert await admin.fetchval("select to_regclass('ledger.loose')") is None
    await admin.close()
