"""What waits of each connection's operations."""

from __future__ import annotations

from collections.abc import Mapping

from foundation.store.unit_of_work import Store
from services.registry.health.status import Queue
from services.registry.operations import queue


class OperationQueues:
    def __init__(self, worker: Store) -> None:
        self._worker = worker

    async def __call__(self) -> Mapping[str, Queue]:
        async with self._worker.across_tenants() as work:
            rows = await queue.by_connection(work)
        return {row.connection: Queue(row.waiting, row.ambiguous) for row in rows}
