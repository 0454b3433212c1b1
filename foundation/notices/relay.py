"""From a service's outbox to the bus. Replicas may tell the same notice: its id says that it is the same."""

from __future__ import annotations

import asyncio
from typing import Self

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import Header

from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from foundation.notices import outbox, stream
from foundation.settings import Secret
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from tieline.event.v1.event_pb2 import Event

log = structlog.get_logger(__name__)

BATCH = 100
LOOK_SECONDS = 1.0
RETRY_SECONDS = 1.0


class NoticeRelay:
    """`async with` it: tells while inside, whenever there is a bus."""

    def __init__(self, component: str, url: Secret, worker: Store) -> None:
        self._component = component
        self._url = url
        self._worker = worker
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        """Set by whoever has written a notice."""
        self._connected = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="tell notices")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def check(self) -> None:
        """For whoever tells what is limited: notices wait while there is no bus."""
        if not self._connected:
            raise Problem(
                Code.DEPENDENCY_UNAVAILABLE, dependency="jetstream", why="there is no connection to it"
            )

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except (Problem, StoreError, nats.errors.Error, OSError, TimeoutError) as error:
                log.debug("notices wait", error=str(error) or type(error).__name__)
            except Exception:  # a task's border: notices must go on being told
                log.exception("notices wait")
            await asyncio.sleep(RETRY_SECONDS)

    async def _session(self) -> None:
        lost = asyncio.Event()
        async with stream.session(self._url, f"tieline-{self._component}-notices", lost) as jetstream:
            self._connected = True
            try:
                while not lost.is_set():
                    if await self._tell(jetstream) < BATCH:
                        await woken(self.wake, LOOK_SECONDS)
            finally:
                self._connected = False

    async def _tell(self, jetstream: JetStreamContext) -> int:
        async with self._worker.across_tenants() as work:
            batch = await outbox.waiting(work, BATCH)
        for waiting in batch:
            event = Event.FromString(waiting.content)
            await jetstream.publish(
                stream.subject(self._component, event.tenant.removeprefix("tenants/")),
                waiting.content,
                stream=stream.STREAM,
                headers={Header.MSG_ID: event.id},
            )
        if batch:
            async with self._worker.across_tenants() as work:
                await outbox.told(work, [waiting.number for waiting in batch])
        return len(batch)
