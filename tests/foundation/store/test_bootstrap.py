import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.connection import connect
from foundation.store.errors import BootstrapRefused, LoginRefused
from foundation.store.migrate import migrate
from foundation.store.url import DatabaseUrl
from foundation.store.walls import gaps
from tests.foundation.store.databases import ARCHIVE, LEDGER, PASSWORDS, Database


@asynccontextmanager
async def connected(url: DatabaseUrl) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await connect(url, application="tests")
    try:
        yield connection
    finally:
        await connection.close()


async def test_it_may_run_again_and_by_several_at_once(cluster: DatabaseUrl, empty: DatabaseUrl) -> None:
    schemas = [LEDGER.prefixed("crowd"), ARCHIVE.prefixed("crowd")]
    passwords = new_passwords(schemas)
    async with connected(cluster) as admin:
        await admin.execute("create database crowded_next_door")
    # Advisory locks end at the database, roles do not: both kinds of collision happen here.
    databases = [empty, cluster.at("crowded_next_door")] * 4
    await asyncio.gather(*(bootstrap(database, passwords, schemas) for database in databases))
    await bootstrap(empty, passwords, schemas)
    for role, password in passwords.items():
        async with connected(empty.login(role, password)) as connection:
            assert await connection.fetchval("select current_user") == role


async def test_a_changed_password_replaces_the_old_one_and_an_unchanged_one_is_left_alone(
    empty: DatabaseUrl,
) -> None:
    schemas = [LEDGER.prefixed("rotating")]
    first, second = new_passwords(schemas), new_passwords(schemas)
    role = schemas[0].service
    async with connected(empty) as admin:

        async def kept() -> str:
            return str(await admin.fetchval("select rolpassword from pg_authid where rolname = $1", role))

        await bootstrap(empty, first, schemas)
        before = await kept()
        await bootstrap(empty, first, schemas)
        assert await kept() == before
        await bootstrap(empty, second, schemas)
    with pytest.raises(LoginRefused):
        await connect(empty.login(role, first[role]), application="tests")
    async with connected(empty.login(role, second[role])):
        pass


async def test_a_second_installation_in_the_cluster_locks_nobody_out(
    cluster: DatabaseUrl, empty: DatabaseUrl
) -> None:
    schemas = [LEDGER.prefixed("shared")]
    role = schemas[0].service
    ours, theirs = new_passwords(schemas), new_passwords(schemas)
    async with connected(cluster) as admin:
        await admin.execute("create database shared_next_door")
    next_door = cluster.at("shared_next_door")
    await bootstrap(empty, ours, schemas)  # before installations had names
    for database in (empty, next_door, empty):
        await bootstrap(database, ours, schemas, installation="it's ours")
    for stranger in ("theirs", None):
        with pytest.raises(BootstrapRefused, match=r"role shared_ledger_\w+ belongs to another installation"):
            await bootstrap(next_door, theirs, schemas, installation=stranger)
    async with connected(empty.login(role, ours[role])):
        pass
    apart = [LEDGER.prefixed("shared_too")]
    async with connected(cluster) as admin:
        await admin.execute("create database shared_apart")
    passwords = new_passwords(apart)
    await bootstrap(cluster.at("shared_apart"), passwords, apart, installation="theirs")
    await migrate(cluster.at("shared_apart"), apart)
    assert await gaps(cluster.at("shared_apart"), apart) == []


async def test_an_admin_who_is_no_superuser_is_enough(empty: DatabaseUrl) -> None:
    schemas = [LEDGER.prefixed("managed"), ARCHIVE.prefixed("managed")]
    async with connected(empty) as superuser:
        await superuser.execute("create role managing_admin login createrole password 'p'")
        await superuser.execute(f"alter database {empty.database} owner to managing_admin")
    admin = empty.login("managing_admin", "p")
    passwords = new_passwords(schemas)
    for _ in range(2):
        await bootstrap(admin, passwords, schemas, installation="managed")
    assert await migrate(admin, schemas) == ["ledger", "archive"]
    assert await migrate(admin, schemas) == []
    assert await gaps(admin, schemas) == []


async def test_an_admin_who_may_not_is_told_what_is_missing(database: Database) -> None:
    with pytest.raises(BootstrapRefused, match=r"must own the database .* and be allowed to create roles"):
        await bootstrap(database.url(LEDGER.service), PASSWORDS, [LEDGER])


@pytest.mark.parametrize("attribute", ["superuser", "bypassrls", "createrole", "nologin"])
async def test_a_role_that_can_do_more_than_ours_is_not_taken_over(
    empty: DatabaseUrl, attribute: str
) -> None:
    schema = LEDGER.prefixed(f"foreign_{attribute}")
    async with connected(empty) as admin:
        await admin.execute(
            f"create role {schema.service} login {attribute}".replace("login nologin", "nologin")
        )
    with pytest.raises(BootstrapRefused, match=f"{schema.service} exists"):
        await bootstrap(empty, new_passwords([schema]), [schema])


async def test_a_schema_of_somebody_else_is_not_taken_over(empty: DatabaseUrl) -> None:
    async with connected(empty) as admin:
        await admin.execute("create schema ledger")
    with pytest.raises(BootstrapRefused, match="ledger exists and belongs to postgres"):
        await bootstrap(empty, PASSWORDS, [LEDGER])


async def test_every_login_role_needs_a_password(empty: DatabaseUrl) -> None:
    with pytest.raises(BootstrapRefused, match="no password was given for tieline_ledger_worker"):
        await bootstrap(empty, {LEDGER.service: "x"}, [LEDGER])


async def test_no_role_of_a_service_reaches_another_schema(database: Database) -> None:
    for role in ARCHIVE.logins:
        async with connected(database.url(role)) as connection:
            for statement in (
                "select * from ledger.notes",
                "select * from ledger.schema_version",
                "select ledger.tenants()",
                "insert into ledger.notes values ('acme', 1, 'x')",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema ledger"):
                    await connection.execute(statement)


async def test_the_server_never_hears_a_password(database: Database, server_log: Path) -> None:
    assert database.admin.database  # bootstrapped, so there is something to find
    # The server of these tests logs every statement, which is the worst that an administrator can turn on.
    log = (await asyncio.to_thread(server_log.read_text)).lower()
    assert f'create role "{LEDGER.service}" login password \'scram-sha-256$' in log
    assert not [role for role, password in PASSWORDS.items() if password.lower() in log]
