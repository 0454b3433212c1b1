"""What the tests of the store share: two schemas with the same tables, in a database made for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from foundation.store.bootstrap import new_passwords
from foundation.store.schemas import Schema
from foundation.store.unit_of_work import Bounds, Store
from foundation.store.url import DatabaseUrl

LEDGER = Schema("ledger", Path(__file__).parent / "ledger")
ARCHIVE = Schema("archive", Path(__file__).parent / "ledger")
PASSWORDS = new_passwords([LEDGER, ARCHIVE])


@dataclass(frozen=True)
class Database:
    """Bootstrapped and migrated."""

    admin: DatabaseUrl

    def url(self, role: str) -> DatabaseUrl:
        return self.admin.login(role, PASSWORDS[role])

    @asynccontextmanager
    async def store(self, role: str, bounds: Bounds | None = None) -> AsyncIterator[Store]:
        store = Store(self.url(role), LEDGER, application="tests", bounds=bounds or Bounds(connections=1))
        try:
            yield store
        finally:
            await store.aclose()
