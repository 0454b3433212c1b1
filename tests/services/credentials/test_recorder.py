"""Group commit of the audit, on a real database; and refusals, which are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from foundation.clock import SteeredClock, SystemClock
from foundation.errors import Code, Problem
from foundation.process.testing import until
from foundation.store.opening import open_store
from foundation.store.schemas import CREDENTIALS
from foundation.store.unit_of_work import Store
from services.credentials.audit import recorder as recorders
from services.credentials.audit import store as queries
from services.credentials.audit.denials import CROWD, KINDS, WINDOW_SECONDS, Denials
from services.credentials.audit.entry import Actor, Entry, Outcome
from services.credentials.audit.journal import Journal
from services.credentials.audit.recorder import AT_ONCE, Recorder
from services.credentials.audit.verifying import verify
from services.credentials.keys.key_file import KeyFile
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.vault import Vault
from services.credentials.settings import CredentialsSettings


def entry(tenant: str = "acme", resource: str = "x", outcome: Outcome = Outcome.INTENT) -> Entry:
    return Entry(
        tenant=tenant,
        action="lease.acquire",
        resource=resource,
        outcome=outcome,
        actor=Actor("services/gateway"),
    )


@pytest.fixture
async def store(settings: tuple[CredentialsSettings, str]) -> AsyncIterator[Store]:
    async with open_store(settings[0].database_url, CREDENTIALS) as store:
        yield store


@pytest.fixture
async def journal(settings: tuple[CredentialsSettings, str], store: Store, tmp_path: Path) -> Journal:
    roots = RootKeys(KeyFile(tmp_path / "root-key"))
    journal = Journal(Vault(roots, store), SystemClock())
    async with open_store(settings[0].worker_database_url, CREDENTIALS) as worker:
        await RootRotation(roots, store, worker, journal).check()
    await journal.load()
    return journal


@pytest.fixture
async def superuser(settings: tuple[CredentialsSettings, str]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings[1])
    yield connection
    await connection.close()


async def commits(superuser: asyncpg.Connection) -> int:
    found = "select count(distinct xmin::text) from credentials.audit_records"
    count: int = await superuser.fetchval(found)
    return count


async def locked(superuser: asyncpg.Connection) -> bool:
    """Whether somebody waits for a row that another holds."""
    return bool(await superuser.fetchval("select exists (select from pg_locks where not granted)"))


async def intact(store: Store, journal: Journal, tenant: str = "acme") -> int:
    checked, finding = await verify(store, tenant, journal.key, {})
    assert finding is None
    return checked


async def test_what_waits_goes_together(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder:
        first = await recorder.record(entry())
        answers = await asyncio.gather(*(recorder.record(entry(), entry("other")) for _ in range(150)))
    assert first == [1]
    assert sorted(mine for mine, _ in answers) == list(range(2, 152))
    assert sorted(other for _, other in answers) == list(range(1, 151))
    assert await commits(superuser) <= 7
    assert (await intact(store, journal), await intact(store, journal, "other")) == (151, 150)


async def test_each_gets_its_own_sequence(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder:
        wanted = [
            [entry(resource=f"{number}/{part}") for part in range(number % 4 + 1)] for number in range(60)
        ]
        answers = await asyncio.gather(*(recorder.record(*entries) for entries in wanted))
    rows = await superuser.fetch("select sequence, resource from credentials.audit_records")
    stored = {row["sequence"]: row["resource"] for row in rows}
    for entries, sequences in zip(wanted, answers, strict=True):
        assert [stored[sequence] for sequence in sequences] == [one.resource for one in entries]


async def test_a_chain_that_cannot_be_written_stops_nobody_else(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder:
        await recorder.record(entry("bad"), entry("good"))
        await superuser.execute("update credentials.audit_heads set mac = '' where tenant = 'bad'")
        bad = [asyncio.create_task(recorder.record(entry("bad"))) for _ in range(5)]
        good = [asyncio.create_task(recorder.record(entry("good"))) for _ in range(5)]
        both = asyncio.create_task(recorder.record(entry("bad"), entry("good")))
        assert [await task for task in good] == [[2], [3], [4], [5], [6]]
        for task in (*bad, both):
            with pytest.raises(Problem) as failed:
                await task
            assert failed.value.code is Code.DEPENDENCY_UNAVAILABLE
    assert (
        await superuser.fetchval("select count(*) from credentials.audit_records where tenant = 'bad'") == 1
    )


async def test_who_leaves_takes_nothing_from_the_others(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder:
        await recorder.record(entry())
        async with superuser.transaction():
            await superuser.execute("select 1 from credentials.audit_heads for update")
            under_way = asyncio.create_task(recorder.record(entry(resource="first")))
            await until(lambda: locked(superuser), 30)
            waiting = [asyncio.create_task(recorder.record(entry(resource=f"{n}"))) for n in range(10)]
            await asyncio.sleep(0)
            for task in waiting[::2]:
                task.cancel()
        assert await under_way == [2]
        assert [await task for task in waiting[1::2]] == [[3], [4], [5], [6], [7]]
        for task in waiting[::2]:
            with pytest.raises(asyncio.CancelledError):
                await task
    assert await intact(store, journal) == 7


async def test_there_is_a_bound(store: Store, journal: Journal, superuser: asyncpg.Connection) -> None:
    async with Recorder(store, journal) as recorder:
        await recorder.record(entry())
        async with superuser.transaction():
            await superuser.execute("select 1 from credentials.audit_heads for update")
            under_way = asyncio.create_task(recorder.record(entry()))
            await until(lambda: locked(superuser), 30)
            with pytest.raises(Problem) as refused:
                await recorder.record(*[entry()] * recorders.WAITING)
            assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE
        assert await under_way == [2]
        assert len(await recorder.record(*[entry()] * (AT_ONCE + 1))) == AT_ONCE + 1


async def test_at_the_end_what_is_under_way_is_finished_and_the_rest_refused(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder:
        await recorder.record(entry())
        transaction = superuser.transaction()
        await transaction.start()
        await superuser.execute("select 1 from credentials.audit_heads for update")
        under_way = asyncio.create_task(recorder.record(entry()))
        await until(lambda: locked(superuser), 30)
        waiting = asyncio.create_task(recorder.record(entry()))
        await asyncio.sleep(0)
        release = asyncio.create_task(_commit_when(waiting, transaction))
    await release
    assert await under_way == [2]
    for late in (waiting, recorder.record(entry())):
        with pytest.raises(Problem) as refused:
            await late
        assert refused.value.code is Code.SHUTTING_DOWN
    assert await intact(store, journal) == 2


async def _commit_when(task: asyncio.Task[list[int]], transaction: asyncpg.transaction.Transaction) -> None:
    await asyncio.wait([task])
    await transaction.commit()


async def denied(store: Store) -> list[queries.RecordRow]:
    wanted = queries.Wanted(tenant="acme", action="lease.acquire")
    async with store.unit_of_work(tenants=["acme"], read_only=True) as work:
        return (await queries.newest_first(work, wanted, None, 10_000))[::-1]


async def test_refusals_of_a_kind_are_one_record_and_a_count(store: Store, journal: Journal) -> None:
    clock = SteeredClock()
    async with Recorder(store, journal) as recorder, Denials(recorder, clock) as denials:
        for _ in range(20):
            await denials.record([entry(outcome=Outcome.DENIED)])
        await denials.record([entry(resource="y", outcome=Outcome.DENIED)] * 2)
        assert [row.resource for row in await denied(store)] == ["x", "y"]
        await clock.advance(WINDOW_SECONDS)

        async def counted() -> bool:
            return len(await denied(store)) == 4

        await until(counted, 30)
        assert [row.details.get("repeated") for row in (await denied(store))[2:]] == ["19", "1"]
        await denials.record([entry(outcome=Outcome.DENIED)])
    assert [row.resource for row in await denied(store)] == ["x", "y", "x", "y", "x"]


async def test_refusals_of_ever_new_kinds_are_a_crowd(store: Store, journal: Journal) -> None:
    async with Recorder(store, journal) as recorder, Denials(recorder, SteeredClock()) as denials:
        for start in range(0, KINDS + 200, 400):
            kinds = [entry(resource=f"{start + number}", outcome=Outcome.DENIED) for number in range(400)]
            await denials.record(kinds)
    rows = await denied(store)
    assert len(rows) == KINDS + 2
    crowd = [row for row in rows if row.details.get("kinds") == CROWD]
    assert [row.details.get("repeated") for row in crowd] == [None, str(1200 - KINDS - 1)]


async def test_a_refusal_that_could_not_be_recorded_is_the_first_again(
    store: Store, journal: Journal, superuser: asyncpg.Connection
) -> None:
    async with Recorder(store, journal) as recorder, Denials(recorder, SteeredClock()) as denials:
        await superuser.execute("revoke insert on credentials.audit_records from tieline_credentials_service")
        with pytest.raises(Problem):
            await denials.record([entry(outcome=Outcome.DENIED)])
        await superuser.execute("grant insert on credentials.audit_records to tieline_credentials_service")
        await denials.record([entry(outcome=Outcome.DENIED)])
        assert len(await denied(store)) == 1
