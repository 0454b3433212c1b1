"""A tenant's key is rotated: 2,000 data keys wrapped anew, one after the other, every commit fsynced.

The first line is how Tieline does it: pages of 200 data keys, values untouched. The others do the same work
otherwise, in the same run.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import text

from bench.kit.measure import Line, interleaved
from bench.kit.postgres import postgres
from foundation.clock import SystemClock
from foundation.settings import PostgresUrl
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.opening import open_store
from foundation.store.schemas import CREDENTIALS
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from services.credentials.audit.journal import Journal
from services.credentials.credential import store as credentials
from services.credentials.credential.store import VersionRow
from services.credentials.keys.envelope import Sealed
from services.credentials.keys.key_file import KeyFile
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.rotation import KeyRotation
from services.credentials.keys.vault import Holding, Vault

TENANT, COUNT, VALUE = "acme", 2000, os.urandom(2048)

_RESEAL = text("""
    update credential_versions set wrapped_key = :wrapped_key, sealed = :sealed, key_version = :key_version
    where tenant = :tenant and credential = :credential and version = :version
""")


@dataclass
class Bench:
    store: Store
    worker: Store
    vault: Vault
    journal: Journal

    async def pages_of(self, page: int) -> None:
        rotation = KeyRotation(self.store, self.worker, self.vault, self.journal, page=page)
        await rotation.rotate(TENANT, (await rotation.read(TENANT)).etag)
        await rotation.carry_on()
        done = await rotation.read(TENANT)
        assert done.since is None
        assert done.data_keys == {done.newest: COUNT}

    async def values_too(self) -> None:
        """What wrapping spares: each value opened and sealed under a new data key."""
        rotation = KeyRotation(self.store, self.worker, self.vault, self.journal)
        await rotation.rotate(TENANT, (await rotation.read(TENANT)).etag)
        for start in range(0, COUNT, 200):
            async with self.store.unit_of_work(tenants=[TENANT]) as work:
                for number in range(start, start + 200):
                    row = await credentials.version(work, TENANT, f"c{number}", 1)
                    assert row is not None
                    assert row.sealed_value is not None
                    value = await self.vault.open(work, row.holding, row.sealed_value, row.key_version)
                    sealed, version = await self.vault.seal(work, row.holding, value)
                    await work.execute(_RESEAL, _values(row, sealed, version))
        await rotation.carry_on()


def _values(row: VersionRow, sealed: Sealed, key_version: int) -> dict[str, object]:
    return {
        "tenant": row.tenant,
        "credential": row.credential,
        "version": row.version,
        "wrapped_key": sealed.wrapped_key,
        "sealed": sealed.value,
        "key_version": key_version,
    }


Way: TypeAlias = Callable[[Bench], Awaitable[None]]


def run() -> list[Line]:
    passwords = new_passwords([CREDENTIALS])
    ways: dict[str, Way] = {
        "pages of 200 data keys": lambda bench: bench.pages_of(200),
        "pages of 20": lambda bench: bench.pages_of(20),
        "a transaction for each": lambda bench: bench.pages_of(1),
        "values opened and sealed anew": lambda bench: bench.values_too(),
    }
    with postgres() as admin, tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root-key"
        asyncio.run(_prepare(admin, passwords, root))
        rate = partial(_rate, admin, passwords, root)
        return interleaved(
            {what: partial(rate, way) for what, way in ways.items()}, unit="keys/s", repetitions=3
        )


async def _prepare(admin: DatabaseUrl, passwords: dict[str, str], root: Path) -> None:
    await bootstrap(admin, passwords, [CREDENTIALS])
    await migrate(admin, [CREDENTIALS])
    async with _opened(admin, passwords, root) as bench, bench.store.unit_of_work(tenants=[TENANT]) as work:
        await bench.vault.give_key(work, TENANT)
        for number in range(COUNT):
            sealed, version = await bench.vault.seal(work, Holding(TENANT, f"c{number}", 1), VALUE)
            row = VersionRow(
                tenant=TENANT,
                credential=f"c{number}",
                version=1,
                key_version=version,
                author="bench",
                wrapped_key=sealed.wrapped_key,
                sealed=sealed.value,
            )
            await credentials.add_version(work, row)


@asynccontextmanager
async def _opened(admin: DatabaseUrl, passwords: dict[str, str], root: Path) -> AsyncIterator[Bench]:
    urls = [PostgresUrl(admin.login(role, passwords[role]).reveal()) for role in CREDENTIALS.logins]
    async with open_store(urls[0], CREDENTIALS) as store, open_store(urls[1], CREDENTIALS) as worker:
        roots = RootKeys(KeyFile(root))
        vault = Vault(roots, store)
        journal = Journal(vault, SystemClock())
        await RootRotation(roots, store, worker, journal).check()
        await journal.load()
        yield Bench(store, worker, vault, journal)


def _rate(admin: DatabaseUrl, passwords: dict[str, str], root: Path, way: Way) -> float:
    return asyncio.run(_measure(admin, passwords, root, way))


async def _measure(admin: DatabaseUrl, passwords: dict[str, str], root: Path, way: Way) -> float:
    async with _opened(admin, passwords, root) as bench:
        began = time.perf_counter()
        await way(bench)
        return COUNT / (time.perf_counter() - began)
