"""The way from the inbox to the store: take what is due, have it transformed, judge, write, all in batches.

A connection is in one batch at a time, so its order holds; a slow batch keeps its own connections waiting and
no others, as long as there is another slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Protocol, Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from services.mapper.broker import Group
from services.mapper.judging import Judge
from services.mapper.leases import Leases
from services.mapper.verdicts import Judged, Waiting
from tieline.registry.v1.broker_pb2 import TransformDataResponse

log = structlog.get_logger(__name__)

BATCH_ROWS = 500
BATCH_BYTES = 4 * 1024 * 1024
"""Half of what a call may carry: a batch ends with the delivery that goes past it."""
SLOTS = 4
POLL_SECONDS = 0.2
"""How late a mapper learns of what another one has accepted, or of a backoff that is over."""
PAUSE_SECONDS = 0.5
"""After the store has failed."""


class Queue(Protocol):
    async def take(
        self, partitions: Collection[int], busy: Collection[str], *, rows: int, size: int
    ) -> list[Waiting]: ...


class Results(Protocol):
    async def finish(self, judged: Sequence[Judged]) -> Sequence[Judged]: ...


class Transforming(Protocol):
    async def transform(self, groups: Sequence[Group]) -> list[TransformDataResponse.Result]: ...


class Worker:
    """`async with` it: works while inside; at the end what is under way may finish for `drain` seconds."""

    def __init__(
        self,
        queue: Queue,
        results: Results,
        broker: Transforming,
        judge: Judge,
        leases: Leases,
        *,
        clock: Clock,
        stored: asyncio.Event,
        drain: float = 5.0,
    ) -> None:
        self._queue = queue
        self._results = results
        self._broker = broker
        self._judge = judge
        self._leases = leases
        self._clock = clock
        self._stored = stored
        self._drain = drain
        self._busy: set[str] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        """Set by whoever accepts something, so that it is not found by the next poll only."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="work on the inbox")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._drain)
        await asyncio.gather(*map(end, tuple(self._under_way)))

    async def _run(self) -> None:
        while True:
            pause = POLL_SECONDS
            try:
                if await self._begin_batch():
                    continue
            except Problem as error:
                log.debug("nothing taken", error=str(error))
                pause = PAUSE_SECONDS
            except Exception:  # a task's border: the work goes on
                log.exception("nothing taken")
                pause = PAUSE_SECONDS
            await woken(self.wake, pause)

    async def _begin_batch(self) -> bool:
        """Whether there was something to do and room to do it."""
        held = self._leases.held
        if not held or len(self._under_way) >= SLOTS:
            return False
        batch = await self._queue.take(held, self._busy, rows=BATCH_ROWS, size=BATCH_BYTES)
        if not batch:
            return False
        connections = {waiting.connection for waiting in batch}
        self._busy |= connections
        task = asyncio.create_task(self._work(batch), name="work on a batch")
        self._under_way.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._busy -= connections
            self._under_way.discard(finished)
            self.wake.set()

        task.add_done_callback(done)
        return True

    async def _work(self, batch: list[Waiting]) -> None:
        try:
            await self.process(batch)
        except Problem as error:
            # Nothing was written, or everything was: the rows themselves know.
            log.debug("batch not finished", error=str(error))
            await self._clock.sleep(PAUSE_SECONDS)
        except Exception:  # a task's border
            log.exception("batch not finished", rows=len(batch))
            await self._clock.sleep(PAUSE_SECONDS)

    async def process(self, batch: Sequence[Waiting]) -> Sequence[Judged]:
        groups = by_connection(batch)
        results = await self._broker.transform(groups)
        now = self._clock.now()
        judged = [
            verdict
            for group, result in zip(groups, results, strict=True)
            for verdict in self._judge.group(group, result, now)
        ]
        finished = await self._results.finish(judged)
        self._stored.set()
        return finished


def by_connection(batch: Sequence[Waiting]) -> list[list[Waiting]]:
    """Groups, each in the order of the batch."""
    connection = attrgetter("connection")
    return [list(group) for _, group in groupby(sorted(batch, key=connection), key=connection)]
