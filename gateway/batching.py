"""Deliveries on their way to the inbox, together: many senders share one call and one commit.

No timer: a call takes everything that waits when it starts, so batches are as large as the load makes them
and a lone delivery never waits for company. The number of calls at a time bounds the work, the queue bounds
the memory; what finds no room is told to come again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self, TypeAlias

from grpc.aio import Channel

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from tieline.mapper.v1 import inbox_pb2_grpc
from tieline.mapper.v1.inbox_pb2 import AcceptDeliveriesRequest, AcceptOutcome, DeliveryInput

CALLS = 4
BATCH_ITEMS = 1000
BATCH_BYTES = 8 * 1024 * 1024
QUEUE_BYTES = 64 * 1024 * 1024
CALL_SECONDS = 8.0
"""Providers give up after ten; a late no is better than none."""

Waiting: TypeAlias = "tuple[DeliveryInput, asyncio.Future[AcceptOutcome]]"


class Inbox:
    """`async with Inbox(channel) as inbox: await inbox.accept(delivery)`."""

    def __init__(self, mapper: Channel) -> None:
        self._stub = inbox_pb2_grpc.InboxServiceStub(mapper)
        self._queue: deque[Waiting] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def accept(self, delivery: DeliveryInput) -> AcceptOutcome:
        """What became of it, once that is durable; a problem where it is not known."""
        size = delivery.ByteSize()  # headers weigh too
        if self._queued_bytes + size > QUEUE_BYTES and self._queue:
            raise Problem(
                Code.DEPENDENCY_UNAVAILABLE, dependency="inbox", why="too much waits for it already"
            )
        answer: asyncio.Future[AcceptOutcome] = asyncio.get_running_loop().create_future()
        self._queue.append((delivery, answer))
        self._queued_bytes += size
        self._arrived.set()
        return await answer

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._carry(), name=f"inbox call {n}") for n in range(CALLS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*map(end, self._tasks))
        for _delivery, answer in self._queue:
            if not answer.done():
                answer.set_exception(Problem(Code.SHUTTING_DOWN, service="gateway"))
        self._queue.clear()

    async def _carry(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._send(batch)

    def _take(self) -> list[Waiting]:
        """As much as one call may carry, and one delivery of any size; those nobody waits for are left out."""
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < BATCH_ITEMS:
            length = self._queue[0][0].ByteSize()
            if batch and size + length > BATCH_BYTES:
                break
            waiting = self._queue.popleft()
            self._queued_bytes -= length
            if not waiting[1].done():
                batch.append(waiting)
                size += length
        return batch

    async def _send(self, batch: list[Waiting]) -> None:
        request = AcceptDeliveriesRequest(deliveries=[delivery for delivery, _ in batch])
        try:
            # A mapper that is just being restarted is worth the wait: most senders never come again.
            response = await self._stub.AcceptDeliveries(request, timeout=CALL_SECONDS, wait_for_ready=True)
        except Problem as problem:
            self._fail(batch, _to_sender(problem))
            return
        except asyncio.CancelledError:
            self._fail(batch, Problem(Code.SHUTTING_DOWN, service="gateway"))
            raise
        if len(response.outcomes) != len(batch):
            why = "its answer does not fit the question"
            self._fail(batch, Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="inbox", why=why))
            return
        for (_, answer), outcome in zip(batch, response.outcomes, strict=True):
            if not answer.done():
                answer.set_result(outcome)

    @staticmethod
    def _fail(batch: list[Waiting], problem: Problem) -> None:
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(Problem(problem.code, **problem.data))


def _to_sender(problem: Problem) -> Problem:
    """Whether it was stored is not known: the sender comes again, and a repeat is recognised."""
    if problem.code is Code.DEADLINE_EXCEEDED:
        return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="inbox", why="it did not answer in time")
    return problem
