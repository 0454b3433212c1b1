"""Mixed batches of 50 rows (1 KiB) of many tenants, 4 in flight, every commit fsynced.

The first line is how Tieline stores: one `unnest` insert for the batch, under row-level security with the list
of its tenants. The others are the same rows stored otherwise, in the same run.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

from sqlalchemy import text

from bench.kit.measure import Line, interleaved
from bench.kit.postgres import postgres
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.schemas import Schema
from foundation.store.unit_of_work import Bounds, Store
from foundation.store.url import DatabaseUrl

SCHEMA = Schema("bench", Path(__file__).parent / "migrations")
TENANTS = [f"tenant-{number}" for number in range(200)]
BATCH, IN_FLIGHT, SECONDS = 50, 4, 2.0

Row: TypeAlias = tuple[str, UUID, bytes]
Way: TypeAlias = Callable[[Store, list[Row]], Awaitable[None]]


def batch_into(table: str) -> Way:
    statement = text(
        f"insert into {table} (tenant, id, body) select * from "  # noqa: S608
        "unnest(cast(:tenants as text[]), cast(:ids as uuid[]), cast(:bodies as bytea[]))"
    )

    async def store_batch(store: Store, rows: list[Row]) -> None:
        tenants, ids, bodies = (list(column) for column in zip(*rows, strict=True))
        async with store.unit_of_work(tenants={row[0] for row in rows}) as work:
            await work.execute(statement, {"tenants": tenants, "ids": ids, "bodies": bodies})

    return store_batch


walled, unwalled = batch_into("walled"), batch_into("unwalled")
ONE_ROW = text("insert into walled (tenant, id, body) values (:tenant, :id, :body)")


async def transaction_per_tenant(store: Store, rows: list[Row]) -> None:
    for _, of_one in groupby(sorted(rows), key=lambda row: row[0]):
        await walled(store, list(of_one))


async def row_by_row(store: Store, rows: list[Row]) -> None:
    async with store.unit_of_work(tenants={row[0] for row in rows}) as work:
        for tenant, key, body in rows:
            await work.execute(ONE_ROW, {"tenant": tenant, "id": key, "body": body})


def run() -> list[Line]:
    passwords = new_passwords([SCHEMA])
    ways = {
        "one unnest, row-level security": walled,
        "one unnest, no row-level security": unwalled,
        "row by row in one transaction": row_by_row,
        "one transaction per tenant": transaction_per_tenant,
    }
    with postgres() as admin:
        asyncio.run(prepare(admin, passwords))
        service = admin.login(SCHEMA.service, passwords[SCHEMA.service])
        rate = partial(rows_per_second, service)
        rate(walled)  # the first seconds belong to files that grow
        return interleaved({what: partial(rate, way) for what, way in ways.items()}, unit="rows/s")


async def prepare(admin: DatabaseUrl, passwords: dict[str, str]) -> None:
    await bootstrap(admin, passwords, [SCHEMA])
    await migrate(admin, [SCHEMA])


def rows_per_second(service: DatabaseUrl, way: Way) -> float:
    return asyncio.run(_rows_per_second(service, way))


async def _rows_per_second(service: DatabaseUrl, way: Way) -> float:
    store = Store(service, SCHEMA, application="bench", bounds=Bounds(connections=IN_FLIGHT))
    body = os.urandom(1024)
    stored = 0
    try:
        await asyncio.gather(*(way(store, batch(body)) for _ in range(IN_FLIGHT)))  # connects and prepares
        started = time.perf_counter()

        async def feed() -> None:
            nonlocal stored
            while time.perf_counter() - started < SECONDS:
                await way(store, batch(body))
                stored += BATCH

        await asyncio.gather(*(feed() for _ in range(IN_FLIGHT)))
        return stored / (time.perf_counter() - started)
    finally:
        await store.aclose()


def batch(body: bytes) -> list[Row]:
    return [(tenant, UUID(int=random.getrandbits(128)), body) for tenant in random.choices(TENANTS, k=BATCH)]  # noqa: S311
