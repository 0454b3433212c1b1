import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.connection import connect
from foundation.store.errors import MigrationFailed, StoreMisconfigured
from foundation.store.migrate import ages, migrate
from foundation.store.revisions import head
from foundation.store.schemas import SCHEMAS, Schema
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from foundation.store.walls import gaps
from tests.foundation.store.databases import LEDGER, PASSWORDS, Database

Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
REAL = [schema.prefixed("real") for schema in SCHEMAS]
OPEN_ALL_ROWS = """
import sqlalchemy as sa
from alembic import op

from foundation.store.tenancy import open_to_owner

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    blind = op.get_bind().execute(sa.text("update notes set body = 'blind'"))
    assert blind.rowcount == 0
    with open_to_owner("notes"):
        op.execute("update notes set body = body || '!'")
"""
FAILS_LATE = """
import sqlalchemy as sa
from alembic import op

from foundation.store.tenancy import tenant_table

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    tenant_table("half", sa.Column("id", sa.Integer), key=["id"], service=["select"])
    op.execute("update notes set no_such_column = 1")
"""
BREAKS_OLDER_CODE = """
from foundation.store.tenancy import oldest_code

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    oldest_code("0003")
"""


def add(schema: Schema, text: str) -> None:
    (schema.migrations / "versions" / "0003_added.py").write_text(text)


@pytest.fixture
async def admin(empty: DatabaseUrl) -> AsyncIterator[Admin]:
    await bootstrap(empty, PASSWORDS, [LEDGER])
    connection = await connect(empty, application="tests")
    yield connection
    await connection.close()


async def test_two_starters_at_once_migrate_once(empty: DatabaseUrl, admin: Admin) -> None:
    await asyncio.gather(*(migrate(empty, [LEDGER]) for _ in range(4)))
    assert [row[0] for row in await admin.fetch("select version_num from ledger.schema_version")] == ["0002"]
    assert await migrate(empty, [LEDGER]) == []


async def test_a_migration_that_fails_leaves_nothing_half_done(
    empty: DatabaseUrl, admin: Admin, growing: Schema
) -> None:
    add(growing, FAILS_LATE)
    with pytest.raises(MigrationFailed, match='schema ledger: column "no_such_column"'):
        await migrate(empty, [growing])
    # All that was pending was one transaction: not even the first two migrations are there.
    assert await admin.fetch("select 1 from pg_class where relnamespace = 'ledger'::regnamespace") == []
    assert await migrate(empty, [LEDGER]) == ["ledger"]


async def test_owners_see_rows_only_by_the_recipe(empty: DatabaseUrl, admin: Admin, growing: Schema) -> None:
    await migrate(empty, [growing])
    await admin.execute("insert into ledger.notes values ('acme', 1, 'a'), ('globex', 1, 'g')")
    async with admin.transaction():
        await admin.execute("set local role tieline_ledger_owner")
        assert await admin.fetch("select * from ledger.notes") == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with admin.transaction():
                await admin.execute("insert into ledger.notes values ('acme', 2, 'a')")
    add(growing, OPEN_ALL_ROWS)
    assert await migrate(empty, [growing]) == ["ledger"]
    assert {row["body"] for row in await admin.fetch("select body from ledger.notes")} == {"a!", "g!"}
    assert await gaps(empty, [growing]) == []


async def test_a_service_knows_whether_the_schema_suits_it(
    empty: DatabaseUrl, admin: Admin, growing: Schema
) -> None:
    def store(schema: Schema) -> Store:
        return Store(empty.login(LEDGER.service, PASSWORDS[LEDGER.service]), schema, application="tests")

    old, new = store(LEDGER), store(growing)
    try:
        never = await old.age()
        assert not never.serves
        assert "never been migrated, this code needs 0002: run the migrations" in str(never)

        await migrate(empty, [LEDGER])
        assert (await old.age()).serves

        add(growing, OPEN_ALL_ROWS)
        assert not (await new.age()).serves
        assert "is at 0002, this code needs 0003: run the migrations" in str(await new.age())

        await migrate(empty, [growing])
        assert (await new.age()).serves
        assert (await old.age()).serves  # newer, and compatible unless it says otherwise

        await admin.execute("comment on table ledger.schema_version is 'oldest code: 0003'")
        assert (await new.age()).serves
        assert not (await old.age()).serves
        assert "this code knows 0002: start a newer release" in str(await old.age())
        assert await migrate(empty, [LEDGER]) == []
    finally:
        await old.aclose()
        await new.aclose()


async def test_a_migration_can_shut_older_code_out(empty: DatabaseUrl, admin: Admin, growing: Schema) -> None:
    add(growing, BREAKS_OLDER_CODE)
    await migrate(empty, [growing])
    assert [age.oldest_code for age in await ages(empty, [growing])] == ["0003"]
    assert await admin.fetchval("select version_num from ledger.schema_version") == "0003"


def test_two_migrations_with_one_number_are_refused(growing: Schema) -> None:
    (growing.migrations / "versions" / "0002_other.py").write_text("")
    with pytest.raises(StoreMisconfigured, match="a number of its own"):
        head(growing.migrations)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_the_numbers_are_what_alembic_finds(schema: Schema) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations))
    script = ScriptDirectory.from_config(config)
    assert script.get_current_head() == head(schema.migrations)
    for revision in script.walk_revisions():
        assert Path(revision.path).name.startswith(f"{revision.revision}_")


async def test_the_real_services_have_no_gap(empty: DatabaseUrl) -> None:
    await bootstrap(empty, new_passwords(REAL), REAL)
    assert await migrate(empty, REAL) == ["credentials", "registry", "mapper"]
    assert await gaps(empty, REAL) == []


async def test_a_warm_start_imports_neither_alembic_nor_sqlalchemy(
    database: Database, tmp_path: Path
) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from foundation.store.bootstrap import bootstrap
from foundation.store.migrate import migrate
from foundation.store.schemas import Schema
from foundation.store.url import DatabaseUrl
ledger = Schema("ledger", Path(sys.argv[2]))
assert asyncio.run(migrate(DatabaseUrl.parse(Path(sys.argv[1]).read_text()), [ledger])) == []
heavy = {"alembic", "sqlalchemy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    url = tmp_path / "url"
    url.write_text(database.admin.reveal())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, url, LEDGER.migrations, stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def run_entry(verb: str, **settings: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "foundation.store", verb),
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_the_entry_takes_its_url_from_a_private_file(empty: DatabaseUrl, tmp_path: Path) -> None:
    url, passwords = tmp_path / "url", tmp_path / "passwords"
    url.write_text(empty.reveal())
    settings = {"TIELINE_DATABASE_ADMIN_URL_FILE": str(url)}

    url.chmod(0o644)
    assert await run_entry("migrate", **settings) == (1, "", f"{url} can be read by others: chmod 600\n")

    url.chmod(0o600)
    status, _, errors = await run_entry("migrate", **settings)
    assert (status, "bootstrap" in errors) == (1, True), errors

    passwords.write_text(json.dumps(new_passwords()))
    passwords.chmod(0o600)
    bootstrapped = settings | {"TIELINE_DATABASE_PASSWORDS_FILE": str(passwords)}
    expected = (0, "migrated credentials, registry, mapper\n", "")
    assert await run_entry("migrate", **bootstrapped) == expected
    assert await run_entry("migrate", **settings) == (0, "nothing to migrate\n", "")
    assert await run_entry("check", **settings) == (0, "0 gaps\n", "")
