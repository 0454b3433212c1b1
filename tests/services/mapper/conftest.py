"""Real engines, shared by the tests of one worker process; a database and a stream of its own for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from foundation.engines.testing import Served, fresh_database, served
from foundation.store.bootstrap import bootstrap
from foundation.store.migrate import migrate
from foundation.store.schemas import MAPPER
from foundation.store.url import DatabaseUrl
from tests.services.mapper.kit import PASSWORDS, Installation, Mapper, forget_stream, neighbours

TEMPLATE = "mapper_template"


@pytest.fixture(scope="session")
def engines() -> Iterator[Served]:
    with served() as engines:
        asyncio.run(_prepare(engines.postgres))
        yield engines


async def _prepare(postgres: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"create database {TEMPLATE}")
    await connection.close()
    admin = DatabaseUrl.parse(urlunsplit(urlsplit(postgres)._replace(path=f"/{TEMPLATE}")))
    await bootstrap(admin, PASSWORDS, [MAPPER])
    await migrate(admin, [MAPPER])


@pytest.fixture
async def installation(engines: Served, tmp_path: Path) -> AsyncIterator[Installation]:
    await forget_stream(engines.nats)
    async with fresh_database(engines.postgres, TEMPLATE) as database, neighbours() as (served, address):
        installation = Installation(DatabaseUrl.parse(database), engines.nats, served, address, tmp_path)
        with closing(installation):
            yield installation


@pytest.fixture
async def mapper(installation: Installation) -> AsyncIterator[Mapper]:
    async with installation.mapper() as mapper:
        yield mapper
