"""Records that must be durable before something goes on, many at a time.

Of each chain at most one transaction is under way here. What comes meanwhile waits and goes with the next, all of
it in one: a busy chain pays for few commits, a quiet one waits for nobody. A transaction holds the records of one
tenant, so a chain that cannot be written stops those who wait for it and nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import structlog

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal

log = structlog.get_logger(__name__)

WAITING = 10_000
"""Entries that may wait; more are refused, and what they stand for does not happen."""
AT_ONCE = 500
"""Entries in one transaction."""
CHAINS = 2
"""Chains that are written at the same time; the rest of the connections belongs to requests."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    entries: Sequence[Entry]
    """Of one tenant."""
    done: asyncio.Future[list[int]]


class Recorder:
    """`async with` it. Never call it within a transaction: that one would keep a connection from it, and a chain."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._queues: dict[str, deque[_Waiting]] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(CHAINS)
        self._waiting = 0
        self._open = True

    async def record(self, *entries: Entry) -> list[int]:
        """The sequence of each, once all are durable. Raises UNAVAILABLE where one cannot be written."""
        if not self._open:
            raise Problem(Code.SHUTTING_DOWN, service="credentials")
        if self._waiting + len(entries) > WAITING:
            raise _unwritten(f"{self._waiting} records wait already")
        of_tenants: dict[str, list[int]] = {}
        for index, entry in enumerate(entries):
            of_tenants.setdefault(entry.tenant, []).append(index)
        waited = [
            (indices, self._enqueue(tenant, [entries[index] for index in indices]))
            for tenant, indices in of_tenants.items()
        ]
        # All are heard before any is raised: no failure is left that nobody has asked for.
        answers = await asyncio.gather(*(done for _, done in waited), return_exceptions=True)
        sequences = [0] * len(entries)
        for (indices, _), answer in zip(waited, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for index, sequence in zip(indices, answer, strict=True):
                sequences[index] = sequence
        return sequences

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """What waits is refused; what is being written ends as it ends."""
        self._open = False
        for queue in self._queues.values():
            _answer(queue, Problem(Code.SHUTTING_DOWN, service="credentials"))
        self._queues.clear()
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=5.0)
        for task in list(self._writing.values()):
            await end(task)

    def _enqueue(self, tenant: str, entries: Sequence[Entry]) -> asyncio.Future[list[int]]:
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(_Waiting(entries, done))
        self._waiting += len(entries)
        done.add_done_callback(lambda _: self._left(len(entries)))
        if tenant not in self._writing:
            task = asyncio.create_task(self._write(tenant), name=f"audit of {tenant or 'the platform'}")
            self._writing[tenant] = task
        return done

    def _left(self, count: int) -> None:
        self._waiting -= count

    async def _write(self, tenant: str) -> None:
        """Until nothing waits for this chain."""
        try:
            while self._queues.get(tenant):
                async with self._turn:
                    together = _take(self._queues[tenant])
                    if together:
                        await self._write_together(tenant, together)
        finally:
            # No await since the queue was seen empty: whoever comes next finds no task and starts one.
            _answer(self._queues.pop(tenant, deque()), Problem(Code.SHUTTING_DOWN, service="credentials"))
            del self._writing[tenant]

    async def _write_together(self, tenant: str, together: Sequence[_Waiting]) -> None:
        try:
            async with self._store.unit_of_work(tenants=[tenant]) as work:
                entries = [entry for waiting in together for entry in waiting.entries]
                records = iter(await self._journal.append(work, *entries))
        except Exception as error:  # a task's border: whatever it is, nobody must wait for ever
            if not isinstance(error, Problem | StoreError):
                log.exception("the audit could not be written")
            _answer(together, _unwritten(str(error)))
        except asyncio.CancelledError:
            _answer(together, Problem(Code.SHUTTING_DOWN, service="credentials"))
            raise
        else:
            for waiting in together:
                sequences = [next(records).sequence for _ in waiting.entries]
                if not waiting.done.done():
                    waiting.done.set_result(sequences)


def _take(queue: deque[_Waiting]) -> list[_Waiting]:
    """As many as go together; those who have left are left out."""
    taken: list[_Waiting] = []
    count = 0
    while queue and (not taken or count + len(queue[0].entries) <= AT_ONCE):
        waiting = queue.popleft()
        if not waiting.done.done():
            taken.append(waiting)
            count += len(waiting.entries)
    return taken


def _answer(waiting: Sequence[_Waiting] | deque[_Waiting], problem: Problem) -> None:
    for one in waiting:
        if not one.done.done():
            one.done.set_exception(problem)


def _unwritten(why: str) -> Problem:
    return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the audit", why=why)
