"""All tenants that are not deleted, held in memory, and whoever wants to be told when that changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from foundation.store.unit_of_work import Store
from foundation.store.watched import Snapshot, Watched
from services.credentials.identities.store import tenants as queries
from services.credentials.identities.store.tenants import TenantRow

LOOK_SECONDS = 1.0

Tenants = Mapping[str, TenantRow]


class TenantPicture(Watched[Tenants]):
    """`turned` is called with the tenants there are whenever that may have changed."""

    def __init__(self, store: Store, turned: Callable[[Collection[str]], None]) -> None:
        self._store = store
        self._told = turned
        super().__init__("tenants", self._living, {}, look_seconds=LOOK_SECONDS)

    async def _living(self, known: int) -> Snapshot[Tenants] | None:
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            generation = await queries.generation(work)
            if generation == known:
                return None
            tenants = {row.id: row for row in await queries.living(work)}
        self._told(tenants)
        return Snapshot(generation, tenants)
