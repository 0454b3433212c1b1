"""From the outbox to the stream: one relay at a time, in the order of the outbox.

The stream gives each event its number, and only here is anything published, so there is one order that all
subscribers see. What a crash leaves open is published again under the same message id, which the stream
recognises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, Self

import nats.errors
import structlog
from nats.js.api import Header, PubAck

from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from services.mapper.bus import STREAM, Bus, Session
from services.mapper.leases import Leases
from services.mapper.store.outbox import Outgoing

log = structlog.get_logger(__name__)

BATCH = 256
POLL_SECONDS = 0.2
RETRY_SECONDS = 0.3
ACKNOWLEDGED_WITHIN = 5.0
REPEATED = timedelta(seconds=10)
"""What was published less long ago is published again when a session begins. The server syncs its store every
two seconds; two such windows may be lost in a power cut, and the rest is for the time between the server's
acknowledgement and our mark, and for clocks."""


class Outbox(Protocol):
    async def unpublished(self, most: int) -> list[Outgoing]: ...

    async def published_within(
        self, time: timedelta, after: int, most: int
    ) -> list[tuple[Outgoing, int]]: ...

    async def mark(self, published: Sequence[tuple[Outgoing, int]]) -> None: ...


class LeaseLost(Exception):  # noqa: N818  it says what happened
    """Somebody else relays now."""


class Relay:
    """`async with` it: relays while inside, whenever the lease is ours."""

    def __init__(self, outbox: Outbox, bus: Bus, lease: Leases) -> None:
        self._outbox = outbox
        self._bus = bus
        self._lease = lease
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        """Set by whoever has stored events."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="relay events")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _run(self) -> None:
        while True:
            if self._lease.held:
                try:
                    await self._session()
                except (Problem, LeaseLost, nats.errors.Error, OSError, TimeoutError) as error:
                    log.debug("relaying begins anew", error=str(error) or type(error).__name__)
                except Exception:  # a task's border: events must go on being told
                    log.exception("relaying begins anew")
            await woken(self._lease.changed, RETRY_SECONDS)

    async def _session(self) -> None:
        async with self._bus.session() as session:
            await self._repeat(session)
            while True:
                batch = await self._outbox.unpublished(BATCH)
                await self._publish(session, batch)
                if len(batch) < BATCH:
                    await woken(self.wake, POLL_SECONDS)

    async def _repeat(self, session: Session) -> None:
        """What the stream may have lost, before anything new: so everything gets the number it had."""
        after = 0
        while batch := await self._outbox.published_within(REPEATED, after, BATCH):
            await self._publish(session, [outgoing for outgoing, _ in batch])
            after = batch[-1][1]

    async def _publish(self, session: Session, batch: Sequence[Outgoing]) -> None:
        """All are sent before the first is awaited; what follows one that was refused is not marked."""
        if not self._lease.held:
            raise LeaseLost
        if session.closed.is_set():
            raise nats.errors.ConnectionClosedError
        pending: list[asyncio.Future[PubAck]] = []
        try:
            for outgoing in batch:
                headers = _headers(outgoing)
                pending.append(
                    await session.stream.publish_async(
                        outgoing.subject, outgoing.content, stream=STREAM, headers=headers
                    )
                )
            acks = await _acknowledgements(session, pending)
        finally:
            for waiting in pending:
                waiting.cancel()
        accepted = _before_the_first_refusal(batch, acks)
        if accepted:
            await self._outbox.mark(accepted)
        if len(accepted) < len(batch):
            refusal = acks[len(accepted)]
            raise nats.errors.Error(str(refusal)) from None


async def _acknowledgements(
    session: Session, pending: Sequence[asyncio.Future[PubAck]]
) -> list[PubAck | BaseException]:
    """Those that came; nobody waits for the others once the connection has ended."""
    all_of_them = asyncio.gather(*pending, return_exceptions=True)
    closed: asyncio.Future[bool] = asyncio.ensure_future(session.closed.wait())
    try:
        waited: list[asyncio.Future[Any]] = [all_of_them, closed]
        await asyncio.wait(waited, timeout=ACKNOWLEDGED_WITHIN, return_when=asyncio.FIRST_COMPLETED)
    finally:
        closed.cancel()
        if not all_of_them.done():
            all_of_them.cancel()
            with suppress(asyncio.CancelledError):
                await all_of_them
    return [_acknowledgement(waiting) for waiting in pending]


def _acknowledgement(waiting: asyncio.Future[PubAck]) -> PubAck | BaseException:
    if waiting.cancelled() or not waiting.done():
        return TimeoutError("no acknowledgement came")
    return waiting.exception() or waiting.result()


def _before_the_first_refusal(
    batch: Sequence[Outgoing], acks: Sequence[PubAck | BaseException]
) -> list[tuple[Outgoing, int]]:
    accepted = []
    for outgoing, ack in zip(batch, acks, strict=True):
        if isinstance(ack, BaseException):
            break
        accepted.append((outgoing, ack.seq))
    return accepted


def _headers(outgoing: Outgoing) -> dict[str, str]:
    headers: dict[str, str] = {Header.MSG_ID: str(outgoing.event)}
    if outgoing.traceparent:
        headers["traceparent"] = outgoing.traceparent
    return headers
