"""Where notices are on the bus, between the service that tells and the mapper that stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from foundation.settings import Secret

log = structlog.get_logger(__name__)

STREAM = "notices"
SUBJECTS = f"{STREAM}.>"
_SIZE = 256 * 1024 * 1024
_DUPLICATE_SECONDS = 600.0

# A notice is gone when the mapper has stored it; a full stream refuses, and the outboxes wait.
CONFIG = StreamConfig(
    name=STREAM,
    subjects=[SUBJECTS],
    retention=RetentionPolicy.WORK_QUEUE,
    discard=DiscardPolicy.NEW,
    storage=StorageType.FILE,
    max_bytes=_SIZE,
    duplicate_window=_DUPLICATE_SECONDS,
    num_replicas=1,
)


def subject(component: str, tenant: str) -> str:
    return f"{STREAM}.{component}.{tenant}"


@asynccontextmanager
async def session(
    url: Secret, name: str, lost: asyncio.Event | None = None
) -> AsyncIterator[JetStreamContext]:
    """One life of a connection: when it breaks, whoever uses it begins anew, with nothing left in between.

    `lost` is set when it breaks, for whoever has nothing to say at the moment.
    """
    client = Client()

    async def closed() -> None:
        if lost is not None:
            lost.set()

    try:
        await client.connect(
            url.reveal(),
            name=name,
            allow_reconnect=False,
            connect_timeout=2,
            error_cb=_note,
            closed_cb=closed,
        )
        jetstream = client.jetstream()
        await ensure(jetstream)
        yield jetstream
    finally:
        await client.close()


async def _note(error: Exception) -> None:
    log.debug("nats", error=type(error).__name__)


async def ensure(stream: JetStreamContext) -> None:
    try:
        await stream.update_stream(CONFIG)
    except nats.js.errors.NotFoundError:
        await stream.add_stream(CONFIG)
