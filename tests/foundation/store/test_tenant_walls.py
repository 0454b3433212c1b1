"""Row-level security, on a pool of one connection that everything reuses."""

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from foundation.store.connection import connect
from foundation.store.errors import AccessRefused
from foundation.store.unit_of_work import Store
from tests.foundation.store.databases import LEDGER, Database

INSERT = text("""
    insert into notes (tenant, id, body)
    select * from unnest(cast(:tenants as text[]), cast(:ids as int[]), cast(:bodies as text[]))
""")
ALL = text("select tenant, id from notes")


def rows_of(tenants: list[str]) -> dict[str, object]:
    return {"tenants": tenants, "ids": list(range(len(tenants))), "bodies": ["x"] * len(tenants)}


async def seen(store: Store, tenants: list[str]) -> set[str]:
    async with store.unit_of_work(tenants=tenants, read_only=True) as work:
        return {row.tenant for row in await work.execute(ALL)}


async def test_no_tenant_reads_and_writes_nothing_on_a_fresh_and_on_a_reused_connection(
    service: Store,
) -> None:
    async def see_and_try_to_write() -> tuple[object, int]:
        async with service._engine.connect() as bare:
            setting = await bare.scalar(text("select current_setting('tieline.tenants', true)"))
            assert (await bare.execute(ALL)).all() == []
            assert (await bare.execute(text("update notes set body = 'mine'"))).rowcount == 0
            assert (await bare.execute(text("delete from notes"))).rowcount == 0
            pid = await bare.scalar(text("select pg_backend_pid()"))
            with pytest.raises(Exception, match="violates row-level security"):
                await bare.execute(INSERT, rows_of(["acme"]))
        return setting, int(pid or 0)

    fresh, first_pid = await see_and_try_to_write()
    async with service.unit_of_work(tenants=["acme"]) as work:
        await work.execute(INSERT, rows_of(["acme"]))
    used, second_pid = await see_and_try_to_write()
    assert (fresh, used) == (None, "")
    assert first_pid == second_pid
    assert await seen(service, []) == set()
    assert await seen(service, ["acme"]) == {"acme"}


# No NUL (PostgreSQL has no such text) and no lone surrogates (they are not text at all).
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        "",
        "a,b",
        "a",
        "b",
        '"',
        "{",
        "}",
        "{a}",
        '","',
        "NULL",
        "null",
        "\\",
        "' or true --",
        " a",
        "%",
        "a\nb",
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(existing=st.lists(names, unique=True, max_size=8), asked=st.lists(names, max_size=8))
async def test_a_list_of_tenants_sees_exactly_those(
    service: Store, existing: list[str], asked: list[str]
) -> None:
    async with service.unit_of_work(tenants=existing) as work:
        await work.execute(INSERT, rows_of(existing))
    async with service.unit_of_work(tenants=asked) as work:
        assert {row.tenant for row in await work.execute(ALL)} == set(existing) & set(asked)
        assert (await work.execute(text("delete from notes"))).rowcount == len(set(existing) & set(asked))
    async with service.unit_of_work(tenants=existing) as work:
        left = {row.tenant for row in await work.execute(text("delete from notes returning tenant"))}
    assert left == set(existing) - set(asked)


async def test_a_mixed_batch_of_fifty_is_one_statement(service: Store) -> None:
    tenants = [f"tenant-{number % 17}" for number in range(50)]
    async with service.unit_of_work(tenants=set(tenants)) as work:
        assert (await work.execute(INSERT, rows_of(tenants))).rowcount == 50
    assert await seen(service, tenants) == set(tenants)


async def test_a_mixed_batch_with_one_foreign_row_is_refused_whole(service: Store) -> None:
    tenants = [f"tenant-{number}" for number in range(50)]
    with pytest.raises(AccessRefused, match="row-level security"):
        async with service.unit_of_work(tenants=tenants[:-1]) as work:
            await work.execute(INSERT, rows_of(tenants))
    assert await seen(service, tenants) == set()


async def test_a_row_cannot_be_moved_to_a_foreign_tenant(service: Store) -> None:
    async with service.unit_of_work(tenants=["acme"]) as work:
        await work.execute(INSERT, rows_of(["acme"]))
    with pytest.raises(AccessRefused):
        async with service.unit_of_work(tenants=["acme"]) as work:
            await work.execute(text("update notes set tenant = 'globex'"))


async def test_what_a_session_leaks_does_not_reach_the_next_unit_of_work(service: Store) -> None:
    async with service.unit_of_work(tenants=["acme"]) as work:
        await work.execute(INSERT, rows_of(["acme"]))
        await work.execute(text("select set_config('tieline.tenants', '{acme}', false)"))
    assert await seen(service, ["globex"]) == set()
    assert await seen(service, []) == set()


async def test_raw_sql_with_the_service_role_gets_nothing_of_others(
    service: Store, database: Database
) -> None:
    async with service.unit_of_work(tenants=["acme", "globex"]) as work:
        await work.execute(INSERT, rows_of(["acme", "globex"]))
    raw = await connect(database.url(LEDGER.service), application="tests")
    try:
        assert await raw.fetch("select * from ledger.notes") == []
        await raw.execute("set tieline.tenants = '{acme}'")
        assert [row["tenant"] for row in await raw.fetch("select * from ledger.notes")] == ["acme"]
        for attempt in (
            "set role tieline_ledger_owner",
            "alter table ledger.notes disable row level security",
            "set row_security = off; select * from ledger.notes",
            "truncate ledger.notes",
            "create table ledger.mine (id int)",
            "create temporary table mine (id int)",
            "create schema mine",
            "create policy open on ledger.notes using (true)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await raw.execute(attempt)
    finally:
        await raw.close()


async def test_the_tenants_are_asked_for_once_a_statement_and_lead_into_the_index(service: Store) -> None:
    explain = text("explain select * from notes where id = 1")
    async with service.unit_of_work(tenants=["acme"]) as work:
        await work.execute(text("set local enable_seqscan = off"))
        await work.execute(text("set local enable_bitmapscan = off"))
        plan = "\n".join(await work.scalars(explain))
    assert "InitPlan" in plan
    assert "Index Cond: ((tenant = ANY (" in plan
    assert "Filter" not in plan


async def test_a_batch_asks_for_its_tenants_once(service: Store) -> None:
    explain = text(f"explain (analyze, costs off, timing off, summary off) {INSERT}")
    tenants = [f"tenant-{number % 17}" for number in range(50)]
    async with service.unit_of_work(tenants=set(tenants)) as work:
        lines = list(await work.scalars(explain, rows_of(tenants)))
    asked = lines[next(number for number, line in enumerate(lines) if "InitPlan" in line) + 1]
    assert "loops=1" in asked, lines
