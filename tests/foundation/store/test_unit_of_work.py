import ast
import asyncio
import itertools
import traceback
from pathlib import Path

import pytest
from sqlalchemy import text

from foundation.errors import Code
from foundation.store.connection import connect
from foundation.store.errors import (
    AccessRefused,
    ConstraintViolated,
    DataRefused,
    LoginRefused,
    StatementFailed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionConflict,
)
from foundation.store.scram import new_password
from foundation.store.unit_of_work import Bounds, Store, pool_size
from foundation.store.url import DatabaseUrl
from tests.foundation.store.databases import LEDGER, Database

INSERT = text("insert into notes values ('acme', :id, :body)")
REPOSITORY = Path(__file__).resolve().parents[3]
DEADLINE = 30


async def insert(store: Store, *ids: int, body: str = "x") -> None:
    async with store.unit_of_work(tenants=["acme"]) as work:
        for number in ids:
            await work.execute(INSERT, {"id": number, "body": body})


async def count(store: Store) -> int:
    async with store.unit_of_work(tenants=["acme"], read_only=True) as work:
        return int(await work.scalar(text("select count(*) from notes")) or 0)


async def test_it_commits_at_the_end_and_only_then(service: Store) -> None:
    await insert(service, 1, 2)
    assert await count(service) == 2

    async def stumble() -> None:
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(INSERT, {"id": 3, "body": "x"})
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert await count(service) == 2


async def test_a_cancelled_one_leaves_nothing_and_gives_its_connection_back(service: Store) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(INSERT, {"id": 1, "body": "x"})
            inside.set()
            await work.execute(text("select pg_sleep(60)"))

    task = asyncio.create_task(hang())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(service) == 0


async def test_read_only_cannot_write(service: Store) -> None:
    with pytest.raises(StatementFailed, match="read-only transaction"):
        async with service.unit_of_work(tenants=["acme"], read_only=True) as work:
            await work.execute(INSERT, {"id": 1, "body": "x"})
    await insert(service, 1)


async def test_one_name_is_not_a_list_of_names(service: Store) -> None:
    with pytest.raises(TypeError, match="not one name"):
        async with service.unit_of_work(tenants="acme"):
            pass


async def test_the_worker_sees_every_tenant_and_may_do_what_it_was_granted(
    service: Store, database: Database
) -> None:
    await insert(service, 1)
    async with database.store(LEDGER.worker) as worker:
        async with worker.across_tenants() as work:
            assert (await work.scalars(text("select tenant from notes"))).all() == ["acme"]
        with pytest.raises(AccessRefused, match="permission denied"):
            async with worker.across_tenants() as work:
                await work.execute(text("update notes set body = 'y'"))
        async with worker.across_tenants() as work:
            await work.execute(text("delete from notes"))
    assert await count(service) == 0
    async with service.across_tenants() as work:
        assert (await work.execute(text("select * from notes"))).all() == []


async def test_a_violated_constraint_is_named(service: Store) -> None:
    await insert(service, 1)
    for number, body, constraint in [(1, "x", "notes_pkey"), (2, "", "notes_say_something")]:
        with pytest.raises(ConstraintViolated) as violation:
            await insert(service, number, body=body)
        assert violation.value.constraint == constraint


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("insert into open values (:secret), (:secret)", ConstraintViolated),
        (
            "select cast(cast(:secret as text) as int)",
            StatementFailed,
        ),  # the server quotes what it cannot read
        ("select cast(:secret as int)", StatementFailed),  # and so does the driver
    ],
)
async def test_an_error_quotes_no_value(
    service: Store, database: Database, statement: str, kind: type[StoreError]
) -> None:
    # Under row-level security PostgreSQL keeps rows out of its messages; elsewhere it does not.
    admin = await connect(database.admin, application="tests")
    await admin.execute("create table ledger.open (secret text primary key)")
    await admin.execute("grant insert, select on ledger.open to tieline_ledger_service")
    await admin.close()
    secret = new_password()[:12]  # not a literal: tracebacks quote the source as well
    with pytest.raises(kind) as failure:
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(text(statement), {"secret": secret})
    shown = "".join(traceback.format_exception(failure.value))
    assert secret not in shown
    assert "await work.execute(text(statement)" in shown


@pytest.mark.parametrize(
    "statement", ["select cast(:value as text)", "select cast(12345678 * length(:value) as smallint)"]
)
async def test_a_value_that_nothing_can_keep_is_the_callers_fault(service: Store, statement: str) -> None:
    with pytest.raises(DataRefused) as refused:
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(text(statement), {"value": "a\0b" if "text" in statement else "ab"})
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_a_deadlock_is_a_conflict_to_one_of_the_two(database: Database) -> None:
    async with database.store(LEDGER.service, Bounds(connections=2)) as store:
        await insert(store, 1, 2)
        both_hold_one = asyncio.Barrier(2)

        async def lock(*ids: int) -> None:
            async with store.unit_of_work(tenants=["acme"]) as work:
                for number in ids:
                    await work.execute(text("update notes set body = 'y' where id = :id"), {"id": number})
                    if number == ids[0]:
                        await both_hold_one.wait()

        outcomes = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "TransactionConflict"]


async def test_a_migration_under_a_live_connection_is_a_conflict_once(
    service: Store, database: Database
) -> None:
    everything = text("select * from notes")

    async def read() -> None:
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(everything)

    await read()
    admin = await connect(database.admin, application="tests")
    await admin.execute("alter table ledger.notes add column more text")
    await admin.close()
    with pytest.raises(TransactionConflict):
        await read()
    await read()


@pytest.mark.parametrize(
    ("bounds", "statement"),
    [
        (Bounds(connections=1, statement=0.05), "select pg_sleep(10)"),
        (Bounds(connections=1, lock=0.05), "update notes set body = 'z' where id = 1"),
    ],
    ids=["statement", "lock"],
)
async def test_what_takes_too_long_is_ended(
    service: Store, database: Database, bounds: Bounds, statement: str
) -> None:
    await insert(service, 1)
    async with service.unit_of_work(tenants=["acme"]) as holder:
        await holder.execute(text("update notes set body = 'y'"))
        async with database.store(LEDGER.service, bounds) as impatient:
            with pytest.raises(StoreTimeout):
                async with impatient.unit_of_work(tenants=["acme"]) as work:
                    await work.execute(text(statement))


async def test_an_idle_transaction_is_ended_and_the_next_one_is_well(database: Database) -> None:
    bounds = Bounds(connections=1, idle_in_transaction=1.0)
    async with database.store(LEDGER.service, bounds) as forgetful:

        async def forget() -> None:
            async with forgetful.unit_of_work(tenants=["acme"]) as work:
                await gone(database, int(await work.scalar(text("select pg_backend_pid()")) or 0))
                await work.execute(INSERT, {"id": 1, "body": "x"})

        with pytest.raises(StoreUnavailable):
            await forget()
        assert await count(forgetful) == 0


async def test_a_connection_that_died_in_the_pool_is_replaced_before_it_is_used(
    service: Store, database: Database
) -> None:
    async with service.unit_of_work(tenants=[]) as work:
        pid = int(await work.scalar(text("select pg_backend_pid()")) or 0)
    admin = await connect(database.admin, application="tests")
    await admin.execute("select pg_terminate_backend($1)", pid)
    await admin.close()
    await gone(database, pid)
    assert await count(service) == 0


async def gone(database: Database, pid: int) -> None:
    admin = await connect(database.admin, application="tests")
    try:
        async with asyncio.timeout(DEADLINE):
            while await admin.fetchval("select 1 from pg_stat_activity where pid = $1", pid):
                await asyncio.sleep(0.01)
    finally:
        await admin.close()


async def test_a_full_pool_is_unavailable_not_endless(database: Database) -> None:
    bounds = Bounds(connections=1, wait_for_connection=0.05)
    async with database.store(LEDGER.service, bounds) as store, store.unit_of_work(tenants=[]):
        with pytest.raises(StoreUnavailable, match="every connection of the pool"):
            async with store.unit_of_work(tenants=[]):
                pass


async def test_a_wrong_password_is_said_without_the_password(database: Database) -> None:
    url = database.admin.login(LEDGER.service, "wr0ng-secret")
    store = Store(url, LEDGER, application="tests")
    with pytest.raises(LoginRefused, match="password authentication failed") as refusal:
        async with store.unit_of_work(tenants=[]):
            pass
    await store.aclose()
    shown = "".join(traceback.format_exception(refusal.value))
    assert LEDGER.service in shown
    assert "wr0ng-secret" not in shown + repr(store) + repr(store._engine)


@pytest.mark.parametrize(("host", "port"), [("/nonexistent", 5432), ("127.0.0.1", 1)], ids=["socket", "tcp"])
async def test_nobody_there_is_unavailable(host: str, port: int) -> None:
    url = DatabaseUrl("user", "s3cret", host, port, "db")
    with pytest.raises(StoreUnavailable, match="cannot be reached") as failure:
        await connect(url, application="tests")
    assert not isinstance(failure.value, LoginRefused)
    assert "s3cret" not in str(failure.value)


async def test_tls_options_reach_the_driver(tmp_path: Path) -> None:
    def url(*options: tuple[str, str]) -> DatabaseUrl:
        return DatabaseUrl("user", "s3cret", "127.0.0.1", 1, "db", options)

    with pytest.raises(StoreMisconfigured, match="sslmode"):
        await connect(url(("sslmode", "perhaps")), application="tests")
    missing = str(tmp_path / "no such file.pem")
    with pytest.raises(StoreUnavailable, match="No such file"):
        await connect(url(("sslmode", "verify-full"), ("sslrootcert", missing)), application="tests")


async def test_a_missing_database_is_a_refusal(database: Database) -> None:
    with pytest.raises(LoginRefused, match="does not exist"):
        await connect(database.admin.at("nowhere"), application="tests")


async def test_the_server_knows_who_is_connected_and_prepares_once(service: Store) -> None:
    await insert(service, *range(20))
    async with service.unit_of_work(tenants=["acme"]) as work:
        name = await work.scalar(text("select current_setting('application_name')"))
        prepared = await work.scalar(
            text("select count(*) from pg_prepared_statements where statement like 'insert into notes%'")
        )
    assert (name, prepared) == ("tests", 1)


def test_pools_fit_the_machine() -> None:
    assert [pool_size(cores) for cores in (None, 1, 2, 4, 64)] == [4, 4, 4, 8, 12]


def test_transactions_begin_and_end_in_one_place() -> None:
    """`foundation/store` aside, nothing calls a method that begins or ends a transaction, or makes an engine."""
    forbidden = {"commit", "rollback", "begin", "begin_nested", "create_async_engine", "async_sessionmaker"}
    sources = (REPOSITORY.glob(f"{top}/**/*.py") for top in ("cli", "foundation", "gateway", "services"))
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {name}"
        for path in itertools.chain.from_iterable(sources)
        if path.parent != REPOSITORY / "foundation" / "store"
        # A plugin reaches no database, and a commit is something that it tells of.
        and REPOSITORY / "services" / "plugins" not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and (name := called(node)) in forbidden
    ]
    assert found == []


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
