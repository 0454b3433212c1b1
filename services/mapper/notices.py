"""What the platform's services say about themselves, taken from the bus and stored like any other event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self
from uuid import UUID

import nats.errors
import structlog
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.notices import stream
from foundation.notices.notice import TYPES
from foundation.settings import Secret
from foundation.store.unit_of_work import Store
from services.mapper.stamping import StampedEvent
from services.mapper.store.news import News, tell
from services.mapper.validation import validate
from tieline.event.v1.event_pb2 import AUTHENTICITY_INTERNAL, Event
from tieline.plugin.v1.transform_pb2 import EventDraft

log = structlog.get_logger(__name__)

CONSUMER = "mapper"
BATCH = 100
WAIT_SECONDS = 5.0
RETRY_SECONDS = 1.0
_DRAFT = frozenset(EventDraft.DESCRIPTOR.fields_by_name)


class NoticeIntake:
    """`async with` it. Mappers side by side share one consumer; each notice is acknowledged when it is stored."""

    def __init__(self, url: Secret, store: Store, clock: Clock, stored: asyncio.Event) -> None:
        self._url = url
        self._store = store
        self._clock = clock
        self._stored = stored
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="take notices in")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                async with stream.session(self._url, "tieline-mapper-notices") as jetstream:
                    await self._follow(jetstream)
            except (Problem, nats.errors.Error, OSError, TimeoutError) as error:
                log.debug("notices are taken in later", error=str(error) or type(error).__name__)
            except Exception:  # a task's border: notices must go on being stored
                log.exception("notices are taken in later")
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, jetstream: JetStreamContext) -> None:
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT)
        pull = await jetstream.pull_subscribe(
            stream.SUBJECTS, durable=CONSUMER, stream=stream.STREAM, config=config
        )
        while True:
            try:
                batch = await pull.fetch(BATCH, timeout=WAIT_SECONDS)
            except TimeoutError:
                continue
            await self._take(batch)

    async def _take(self, batch: Sequence[Msg]) -> None:
        news: list[News] = []
        for message in batch:
            try:
                news.append(read(message.subject, message.data, self._clock.now()))
            except Unfit as unfit:
                # It would come back for ever; what is said here is all that anybody can do.
                log.warning("a notice cannot be stored", subject=message.subject, why=str(unfit))
        async with self._store.unit_of_work(tenants={one.tenant for one in news}) as work:
            await tell(work, news)
        for message in batch:
            await message.ack()
        self._stored.set()


class Unfit(ValueError):  # noqa: N818 - says what is the case
    """It is no notice that may be stored, and never will be."""


def read(subject: str, content: bytes, now: datetime) -> News:
    """The notice as an event of its tenant, or `Unfit`, which says why it is none."""
    try:
        event = Event.FromString(content)
        identity = UUID(event.id)
    except (DecodeError, ValueError):
        raise Unfit("it is no event with an id") from None
    tenant = event.tenant.removeprefix("tenants/")
    if subject != stream.subject(event.source.component, tenant) or not tenant:
        raise Unfit(f"it says that it is of {event.source.component} about {event.tenant}")
    if not event.type.startswith(TYPES) or event.authenticity != AUTHENTICITY_INTERNAL or event.connection:
        raise Unfit("it is not marked as a notice of the platform")
    said = {of.name: value for of, value in event.ListFields() if of.name in _DRAFT}
    if found := validate(EventDraft(**said)):
        raise Unfit("; ".join(f"{one.pointer}: {one.summary}" for one in found))
    event.stored_at.FromDatetime(now)
    stamped = StampedEvent(identity, event.occurred_at.ToDatetime(UTC), now, event)
    return News(tenant, "", "", stamped)
