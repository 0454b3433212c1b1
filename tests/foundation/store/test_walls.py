"""Each gap, made on purpose by an owner who got it wrong, is found."""

import pytest

from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.connection import connect
from foundation.store.migrate import migrate
from foundation.store.url import DatabaseUrl
from foundation.store.walls import gaps
from tests.foundation.store.databases import ARCHIVE, LEDGER, Database

FORGOTTEN = """
    create table ledger.forgotten (tenant text, id int, primary key (tenant, id));
    alter table ledger.forgotten owner to tieline_ledger_owner
"""


async def test_a_migrated_database_has_no_gap(database: Database) -> None:
    assert await gaps(database.admin, [LEDGER, ARCHIVE]) == []


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (FORGOTTEN, "forgotten: row-level security is not forced"),
        (FORGOTTEN, "forgotten: no policy tenants_of_this_transaction"),
        ("create table ledger.shared (id int)", "shared: no tenant column, and no comment"),
        ("alter table ledger.notes no force row level security", "notes: row-level security is not forced"),
        ("alter table ledger.notes disable row level security", "notes: row-level security is not forced"),
        ("alter table ledger.notes drop constraint notes_pkey", "notes: no primary key"),
        ("create unique index loud on ledger.notes (body)", "notes: ledger.loud is unique across tenants"),
        ("create policy open on ledger.notes using (true)", "notes: policy open is for others"),
        (
            "create policy more on ledger.notes to tieline_ledger_service using (true)",
            "notes: policy more lets rows through",
        ),
        (
            "alter policy tenants_of_this_transaction on ledger.notes with check (true)",
            "notes: policy tenants_of_this_transaction lets rows through",
        ),
        (
            "alter policy every_tenant on ledger.notes to tieline_ledger_worker, tieline_ledger_service",
            "notes: policy every_tenant is for others",
        ),
        (
            "create materialized view ledger.copy as select * from ledger.notes",
            "copy: has tenants, and is no plain table",
        ),
        ("alter table ledger.notes owner to postgres", "ledger.notes belongs to postgres"),
        ("alter schema ledger owner to postgres", "schema ledger belongs to postgres"),
        ("grant truncate on ledger.notes to tieline_ledger_service", "tieline_ledger_service may truncate"),
        ("grant select on ledger.notes to public", "ledger.notes: PUBLIC may select"),
        ("grant execute on function ledger.tenants() to public", "PUBLIC may execute"),
        ("grant usage on schema ledger to public", "schema ledger: PUBLIC may usage"),
        ("grant temporary on database {database} to public", "PUBLIC may temporary"),
        (
            "grant create on schema ledger to tieline_ledger_worker",
            "tieline_ledger_worker may create in schema ledger",
        ),
        (
            "grant usage on schema archive to tieline_ledger_service",
            "tieline_ledger_service may use schema archive",
        ),
        (
            "alter table ledger.notes owner to tieline_ledger_service",
            "tieline_ledger_service owns something",
        ),
    ],
)
async def test_a_gap_is_found(database: Database, mistake: str, found: str) -> None:
    connection = await connect(database.admin, application="tests")
    await connection.execute(mistake.format(database=database.admin.database))
    await connection.close()
    sentences = await gaps(database.admin, [LEDGER])
    assert [sentence for sentence in sentences if found in sentence], sentences


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("alter role {service} bypassrls", "{service} is superuser, or bypasses"),
        ("alter role {worker} superuser", "{worker} is superuser, or bypasses"),
        ("alter role {owner} login", "the owner {owner} can log in"),
        ("grant {owner} to {service}", "{service} is a member of {owner}"),
    ],
)
async def test_a_role_that_grew_is_found(empty: DatabaseUrl, mistake: str, found: str) -> None:
    schema = LEDGER.prefixed(f"grown_{mistake.rsplit(maxsplit=1)[-1]}"[:20].replace("{", "").replace("}", ""))
    await bootstrap(empty, new_passwords([schema]), [schema])
    await migrate(empty, [schema])
    names = {"owner": schema.owner, "service": schema.service, "worker": schema.worker}
    connection = await connect(empty, application="tests")
    await connection.execute(mistake.format(**names))
    await connection.close()
    sentences = await gaps(empty, [schema])
    assert [sentence for sentence in sentences if found.format(**names) in sentence], sentences
