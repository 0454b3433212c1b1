"""The mapper's path with a broker that answers at once: accepting alone, then from the inbox to the stream.

Mixed batches of 50 deliveries (1 KiB) of 40 connections of 20 tenants, 4 in flight, every commit fsynced. The
mapper, the loader and both engines share the machine, so each figure is a lower bound.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import text

from bench.kit.measure import Line
from foundation.clock import SystemClock
from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.settings import Secret
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.opening import open_store
from foundation.store.schemas import MAPPER
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from services.mapper.broker import Group
from services.mapper.bus import Bus, StreamLimits, open_bus
from services.mapper.inbox import Inbox
from services.mapper.main import working
from services.mapper.store.inbox import InboxStore
from services.mapper.verdicts import Waiting
from tieline.event.v1.content_pb2 import CATEGORY_DELIVERY
from tieline.mapper.v1.inbox_pb2 import DeliveryInput
from tieline.plugin.v1.transform_pb2 import EventDraft, TransformOutcome
from tieline.registry.v1.broker_pb2 import TransformDataResponse

BATCH, IN_FLIGHT, ROWS, REPETITIONS = 50, 4, 10_000, 3
BODY = os.urandom(1024)
_TO_DO = text("""
    select (select count(*) from inbox where state = 0)
         + (select count(*) from outbox where published_at is null)
""")


class NullBroker:
    async def transform(self, groups: Sequence[Group]) -> list[TransformDataResponse.Result]:
        return [
            TransformDataResponse.Result(outcomes=map(event, group), plugin_version="1") for group in groups
        ]


def event(waiting: Waiting) -> TransformOutcome:
    draft = EventDraft(
        external_key=waiting.key, category=CATEGORY_DELIVERY, type="github.push", title="a push"
    )
    events = TransformOutcome.EventDrafts(drafts=[draft])
    return TransformOutcome(input_id=str(waiting.id), events=events)


def run() -> list[Line]:
    return asyncio.run(_run())


async def _run() -> list[Line]:
    accepted, finished = [], []
    async with opened() as mapper:
        for _ in range(REPETITIONS):
            accepted.append(await mapper.accept())
            finished.append(await mapper.work_off())
    return [
        Line("accepted, nobody works", accepted, "rows/s"),
        Line("from the inbox to the stream", finished, "rows/s"),
    ]


@dataclass(frozen=True)
class Opened:
    store: Store
    worker_store: Store
    bus: Bus
    nats: Secret

    async def accept(self) -> float:
        inbox, began = Inbox(InboxStore(self.store)), time.perf_counter()

        async def feed() -> None:
            for _ in range(ROWS // BATCH // IN_FLIGHT):
                await inbox.accept([arrival(number) for number in range(BATCH)])

        await asyncio.gather(*(feed() for _ in range(IN_FLIGHT)))
        return ROWS / (time.perf_counter() - began)

    async def work_off(self) -> float:
        began = time.perf_counter()
        async with working(
            self.store, self.worker_store, self.bus, NullBroker(), SystemClock(), notices=self.nats
        ):
            while await self._to_do():
                await asyncio.sleep(0.05)
        return ROWS / (time.perf_counter() - began)

    async def _to_do(self) -> int:
        async with self.worker_store.across_tenants() as work:
            return int((await work.execute(_TO_DO)).scalar_one())


def arrival(number: int) -> DeliveryInput:
    message = DeliveryInput(
        connection=f"tenants/tenant-{number % 20}/connections/c-{number % 40}",
        webhook="webhook",
        delivery_id=str(uuid4()),
        provider_delivery_id=str(uuid4()),
        event_type="push",
        body=BODY,
        verified=True,
    )
    message.received_at.GetCurrentTime()
    return message


@asynccontextmanager
async def opened() -> AsyncIterator[Opened]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp")))
        postgres, nats = Postgres(directory / "postgres"), Nats(directory / "nats")
        for engine in (postgres, nats):
            await engine.start()
            stack.push_async_callback(engine.stop)
        passwords, admin = new_passwords([MAPPER]), DatabaseUrl.parse(postgres.url)
        await bootstrap(admin, passwords, [MAPPER])
        await migrate(admin, [MAPPER])
        stores = [
            await stack.enter_async_context(
                open_store(Secret(admin.login(role, passwords[role]).reveal()), MAPPER)
            )
            for role in MAPPER.logins
        ]
        limits = StreamLimits(size=1024**3, age=86_400)
        bus = await stack.enter_async_context(open_bus(Secret(nats.url), limits))
        yield Opened(stores[0], stores[1], bus, Secret(nats.url))
