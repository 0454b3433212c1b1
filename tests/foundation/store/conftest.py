"""A database of its own for every test, in a cluster that the tests of one worker process share."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bench.kit.postgres import postgres
from foundation.store.bootstrap import bootstrap
from foundation.store.connection import connect
from foundation.store.migrate import migrate
from foundation.store.schemas import Schema
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from tests.foundation.store.databases import ARCHIVE, LEDGER, PASSWORDS, Database

_numbers = count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[DatabaseUrl]:
    with postgres(fsync="off", log_statement="all") as admin:
        yield admin


@pytest.fixture(scope="session")
def server_log(cluster: DatabaseUrl) -> Path:
    return Path(cluster.host) / "log"


@pytest.fixture
async def empty(cluster: DatabaseUrl) -> DatabaseUrl:
    name = f"test_{next(_numbers)}"
    connection = await connect(cluster, application="tests")
    await connection.execute(f"create database {name}")
    await connection.close()
    return cluster.at(name)


@pytest.fixture
async def database(empty: DatabaseUrl) -> Database:
    await bootstrap(empty, PASSWORDS, [LEDGER, ARCHIVE])
    await migrate(empty, [LEDGER, ARCHIVE])
    return Database(empty)


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Store]:
    async with database.store(LEDGER.service) as store:
        yield store


@pytest.fixture
def growing(tmp_path: Path) -> Schema:
    """The ledger's migrations in a folder where a test may add one; the path has a space and a percent."""
    folder = tmp_path / "100% mine"
    shutil.copytree(LEDGER.migrations, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return replace(LEDGER, migrations=folder)
