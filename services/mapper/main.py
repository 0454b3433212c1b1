"""The mapper: opened here in the order in which it depends on things, closed in reverse.

    InboxService ── inbox ─▶ deliveries ─▶ worker ── broker ─▶ judge ─▶ events, outbox ─▶ relay ─▶ stream
    EventService, SubscriptionService ◀── events, stream

The API is opened last and closed first; then the worker finishes what is under way, and the relay stops. What
either leaves undone is in the database, for the next mapper.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from foundation.clock import Clock, SystemClock
from foundation.identity import TokenVerifier
from foundation.identity.keys import RemoteKeys
from foundation.identity.session import Session, read_token
from foundation.rpc import RpcServer, connect, serving
from foundation.settings import Secret, run
from foundation.store.opening import check_schema, open_store
from foundation.store.schemas import MAPPER
from foundation.store.unit_of_work import Store
from foundation.telemetry import Check, Readiness, configure_logs
from services.mapper.backoff import Backoff
from services.mapper.broker import Broker
from services.mapper.bus import Bus, StreamLimits, open_bus
from services.mapper.event_servicer import EventServicer
from services.mapper.inbox import Inbox
from services.mapper.inbox_servicer import InboxServicer
from services.mapper.judging import Judge
from services.mapper.leases import Leases
from services.mapper.names import PARTITIONS
from services.mapper.notices import NoticeIntake
from services.mapper.relay import Relay
from services.mapper.settings import MapperSettings
from services.mapper.store.events import EventStore
from services.mapper.store.inbox import InboxStore, PressureStore
from services.mapper.store.leases import LeaseStore
from services.mapper.store.outbox import OutboxStore
from services.mapper.store.subscriptions import SubscriptionStore
from services.mapper.store.work import QueueStore, WorkStore
from services.mapper.subscription_servicer import SubscriptionServicer
from services.mapper.worker import Transforming, Worker
from tieline.mapper.v1.events_pb2_grpc import add_EventServiceServicer_to_server
from tieline.mapper.v1.inbox_pb2_grpc import add_InboxServiceServicer_to_server
from tieline.mapper.v1.subscriptions_pb2_grpc import add_SubscriptionServiceServicer_to_server

DAY = 86_400


async def serve(settings: MapperSettings, stop: asyncio.Event) -> None:
    configure_logs("mapper", settings.log_level, settings.log_format)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        store = await open_(open_store(settings.database_url, MAPPER))
        worker_store = await open_(open_store(settings.worker_database_url, MAPPER))
        bus = await open_(
            open_bus(settings.nats_url, StreamLimits(settings.stream_bytes, settings.stream_days * DAY))
        )
        credentials = await open_(connect(str(settings.credentials)))
        keys = await open_(RemoteKeys(credentials))
        session = Session(credentials, read_token(settings.token_file), clock)
        registry = await open_(connect(str(settings.registry), session.token))
        wake = await open_(
            working(store, worker_store, bus, Broker(registry), clock, notices=settings.nats_url)
        )
        api = Api(
            InboxServicer(Inbox(InboxStore(store)), PressureStore(worker_store), wake, clock),
            EventServicer(EventStore(store), clock),  # type: ignore[abstract]
            SubscriptionServicer(SubscriptionStore(store), bus, clock, stopping=stop),  # type: ignore[abstract]
        )
        checks: dict[str, Check] = {
            "postgres": partial(check_schema, store),
            "postgres (worker)": partial(check_schema, worker_store),
            "nats": bus.check,
            "credentials": keys.check,
        }
        await open_(
            serving(
                "mapper",
                settings,
                readiness=Readiness(checks),
                authenticator=TokenVerifier(keys, clock),
                add_servicers=api.add_to,
            )
        )
        await stop.wait()


@asynccontextmanager
async def working(
    store: Store, worker_store: Store, bus: Bus, broker: Transforming, clock: Clock, *, notices: Secret
) -> AsyncIterator[asyncio.Event]:
    """Everything that goes on by itself; answers what to set when something was accepted."""
    owner, leases = uuid4(), LeaseStore(worker_store)
    async with AsyncExitStack() as stack:
        relaying = await stack.enter_async_context(Leases(leases, "relay", 1, owner, clock))
        relay = await stack.enter_async_context(Relay(OutboxStore(worker_store), bus, relaying))
        await stack.enter_async_context(NoticeIntake(notices, store, clock, relay.wake))
        partitions = await stack.enter_async_context(Leases(leases, "inbox", PARTITIONS, owner, clock))
        worker = await stack.enter_async_context(
            Worker(
                QueueStore(worker_store),
                WorkStore(store),
                broker,
                Judge(Backoff()),
                partitions,
                clock=clock,
                stored=relay.wake,
            )
        )
        yield worker.wake


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests; methods that are not served yet are answered by the generated base classes."""

    inbox: InboxServicer
    events: EventServicer
    subscriptions: SubscriptionServicer

    def add_to(self, server: RpcServer) -> None:
        server.add(add_InboxServiceServicer_to_server, self.inbox)
        server.add(add_EventServiceServicer_to_server, self.events)
        server.add(add_SubscriptionServiceServicer_to_server, self.subscriptions)


def main() -> None:
    run("mapper", MapperSettings, serve)
