"""Schedules in line with what a connection wants: however often it is done, and by whoever knows less."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from foundation.engines.testing import Served
from foundation.store.opening import open_store
from foundation.store.schemas import REGISTRY
from foundation.store.unit_of_work import Store
from services.registry.schedules import planting
from services.registry.schedules.schedule import Kind
from services.registry.schedules.wishes import Wish, digest
from tests.services.registry.conftest import Running, prepared
from tieline.common.v1.delivery_pb2 import PRIORITY_UNSPECIFIED
from tieline.plugin.v1.fetch_pb2 import Partition

ITEMS = Wish("items", Kind.POLL, 60.0, 1.0, PRIORITY_UNSPECIFIED)
LOGS = Wish("logs", Kind.LIST, 60.0, 1.0, PRIORITY_UNSPECIFIED)


@dataclass
class Garden:
    running: Running
    worker: Store

    async def plant(self, revision: int, *wanted: Wish) -> bool:
        async with self.worker.unit_of_work(tenants=["acme"]) as work:
            mark = digest(revision, wanted)
            return await planting.plant(work, "acme", "main", wanted, revision=revision, digest=mark)

    async def listed(self, wish: Wish, *parts: str, broken: Sequence[str] = (), entry: str = "") -> None:
        listed = [Partition(id=part, slot_entry=entry) for part in parts]
        async with self.worker.unit_of_work(tenants=["acme"]) as work:
            await planting.put_parts(work, "acme", "main", wish, listed=listed, broken=broken)

    async def rows(self) -> dict[str, tuple[str, float, str]]:
        """Kind, interval and state of each."""
        rows = await self.running.sql("select id, kind, interval_seconds, state from registry.schedules")
        return {row["id"]: (row["kind"], row["interval_seconds"], row["state"]) for row in rows}


@pytest.fixture
async def garden(engines: Served, tmp_path: Path) -> AsyncIterator[Garden]:
    async with prepared(engines, tmp_path) as running:
        await running.sql("""
            insert into registry.connections (tenant, id, instance, plugin, revision, applied_revision, state,
                state_time, application, create_time, update_time)
            values ('acme', 'main', 'i', 'p', 3, 3, 'active', now(), 'applied', now(), now())
        """)
        async with open_store(running.settings.worker_database_url, REGISTRY) as worker:
            yield Garden(running, worker)


async def test_streams_come_and_go_with_the_newest_revision(garden: Garden) -> None:
    assert await garden.plant(2, ITEMS, LOGS)
    assert not await garden.plant(2, ITEMS, LOGS), "it is so already"
    await garden.listed(LOGS, "a", "b")
    assert set(await garden.rows()) == {"items", "logs", "logs.a", "logs.b"}
    assert not await garden.plant(1), "whoever knows an older revision changes nothing"
    assert await garden.plant(3, replace(LOGS, interval=30.0, exclude=("b",)))
    assert await garden.rows() == {
        "logs": ("list", 600.0, "waiting"),
        "logs.a": ("poll", 30.0, "waiting"),
    }
    # A version of the plugin for which it has no parts any more.
    assert await garden.plant(4, replace(LOGS, kind=Kind.POLL))
    assert await garden.rows() == {"logs": ("poll", 60.0, "waiting")}
    assert await garden.plant(5)
    assert await garden.rows() == {}


async def test_parts_of_an_entry_that_could_not_be_listed_stay(garden: Garden) -> None:
    await garden.plant(1, LOGS)
    await garden.listed(LOGS, "a", "b", entry="second")
    await garden.listed(LOGS, broken=["second"])
    assert {state for _, _, state in (await garden.rows()).values()} == {"waiting"}
    await garden.listed(LOGS, "a", entry="second")
    assert (await garden.rows())["logs.b"][2] == "stopped"
    await garden.listed(LOGS, "b", entry="second")
    assert {id_: state for id_, (_, _, state) in (await garden.rows()).items()} == {
        "logs": "waiting",
        "logs.a": "stopped",
        "logs.b": "waiting",
    }


async def test_what_is_being_deleted_gets_no_schedules(garden: Garden) -> None:
    await garden.running.sql("update registry.connections set state = 'deleting'")
    assert not await garden.plant(1, ITEMS)
    assert await garden.rows() == {}


async def test_a_shorter_interval_counts_at_once_and_what_failed_is_tried_anew(garden: Garden) -> None:
    slow = replace(ITEMS, interval=3600.0)
    await garden.plant(1, slow)
    await garden.running.sql("update registry.schedules set next_time = now() + interval '1 hour'")
    await garden.plant(2, ITEMS)
    (row,) = await garden.running.sql("select next_time - now() as wait from registry.schedules")
    assert row["wait"].total_seconds() <= 60
    later = (
        "update registry.schedules set state = 'failing', failures = 9, next_time = now() + interval '1 hour'"
    )
    await garden.running.sql(later)
    await garden.plant(3, ITEMS)
    (row,) = await garden.running.sql("select failures, next_time <= now() as is_due from registry.schedules")
    assert (row["failures"], row["is_due"]) == (0, True)
