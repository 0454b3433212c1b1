"""The mapper's connection to JetStream: made in the background, kept for ever, asked by readiness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.settings import Secret

log = structlog.get_logger(__name__)

STREAM = "events"
DUPLICATE_WINDOW = 600.0
"""Seconds in which the stream knows an event that it has; far longer than any repetition of the relay's."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """A full stream refuses: the outbox waits, and nothing that nobody has read yet is thrown away."""

    size: int
    age: float

    def config(self) -> StreamConfig:
        return StreamConfig(
            name=STREAM,
            subjects=["events.>"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            max_bytes=self.size,
            max_age=self.age,
            max_msgs=-1,
            duplicate_window=min(DUPLICATE_WINDOW, self.age),
            num_replicas=1,
            allow_direct=True,
        )


@dataclass(frozen=True, slots=True)
class Session:
    """One life of a publisher's connection."""

    stream: JetStreamContext
    closed: asyncio.Event


class Bus:
    """One client for everything that reads; whoever publishes takes a `session` of its own."""

    def __init__(self, client: Client, url: Secret, limits: StreamLimits) -> None:
        self.client = client
        self._url = url
        self._limits = limits

    async def check(self) -> None:
        """Return if JetStream answers; raise the problem DEPENDENCY_UNAVAILABLE if not."""
        if not self.client.is_connected:
            raise unavailable("there is no connection")
        try:
            await self.client.jetstream().account_info()
        except (nats.errors.Error, TimeoutError) as error:
            raise unavailable(error) from error

    async def last_number(self) -> int:
        """The number of the last event in the stream: whoever begins behind it hears what comes now."""
        stream = self.client.jetstream()
        try:
            try:
                info = await stream.stream_info(STREAM)
            except nats.js.errors.NotFoundError:
                info = await stream.add_stream(self._limits.config())
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise unavailable(error) from error
        return info.state.last_seq

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection that ends when it breaks, taking along what was not acknowledged.

        A client that reconnects by itself would send what it had buffered, after a restart of which the
        publisher knows nothing; one that begins anew can first repeat what the server may have lost.
        """
        client, closed = Client(), asyncio.Event()

        async def note_end() -> None:
            closed.set()

        try:
            await client.connect(
                self._url.reveal(),
                name="tieline-mapper-relay",
                closed_cb=note_end,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=2,
                error_cb=_note,
            )
            stream = client.jetstream()
            await self._ensure(stream)
            yield Session(stream, closed)
        finally:
            await client.close()

    async def _ensure(self, stream: JetStreamContext) -> None:
        config = self._limits.config()
        try:
            await stream.update_stream(config)
        except nats.js.errors.NotFoundError:
            await stream.add_stream(config)


@asynccontextmanager
async def open_bus(url: Secret, limits: StreamLimits) -> AsyncIterator[Bus]:
    """A process starts whether or not the server is there; it is ready when the server is."""
    client = Client()
    connecting = asyncio.create_task(
        client.connect(
            url.reveal(),
            name="tieline-mapper",
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds; fractions work
            connect_timeout=2,
            error_cb=_note,
        ),
        name="connect to nats",
    )
    try:
        yield Bus(client, url, limits)
    finally:
        await end(connecting)
        if client.is_connected:
            await client.close()


def unavailable(error: object) -> Problem:
    why = str(error) or type(error).__name__
    return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="nats", why=why)


async def _note(error: Exception) -> None:
    log.debug("nats", error=type(error).__name__)
