"""A mapper as it is composed, its neighbours as the contract describes them, and words to ask it with."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import nats
import nats.js.errors
from joserfc.jwk import OKPKey
from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.errors import Problem
from foundation.identity import Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.notices import stream
from foundation.process.ports import Port
from foundation.rpc import Connection, RpcServer, connect
from foundation.rpc.call import present_call
from foundation.settings import Address, NatsUrl, PostgresUrl, Secret
from foundation.store.bootstrap import new_passwords
from foundation.store.schemas import MAPPER
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from foundation.telemetry import Metrics
from services.mapper.bus import STREAM
from services.mapper.main import serve
from services.mapper.settings import MapperSettings
from services.mapper.store.work import WorkStore
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT, Failure
from tieline.credentials.v1 import tokens_pb2, tokens_pb2_grpc
from tieline.event.v1.content_pb2 import CATEGORY_DELIVERY, SEVERITY_INFO
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1 import (
    events_pb2,
    events_pb2_grpc,
    inbox_pb2,
    inbox_pb2_grpc,
    subscriptions_pb2,
    subscriptions_pb2_grpc,
)
from tieline.plugin.v1.transform_pb2 import EventDraft, TransformInput, TransformOutcome
from tieline.registry.v1 import broker_pb2, broker_pb2_grpc

KEY = OKPKey.generate_key("Ed25519")
PASSWORDS = new_passwords([MAPPER])
GATEWAY = Principal(Kind.SERVICE, "services/gateway", frozenset({Role.INGEST, Role.SERVICE}))
MAPPER_ITSELF = Principal(Kind.SERVICE, "services/mapper", frozenset({Role.SERVICE}))
ADMIN = Principal(Kind.USER, "users/admin", frozenset({Role.PLATFORM_ADMIN}))

Answer = Callable[[broker_pb2.TransformDataRequest], Awaitable[broker_pb2.TransformDataResponse]]


def member_of(tenant: str, role: Role = Role.OPERATOR) -> Principal:
    return Principal(Kind.USER, "users/ada", tenant_roles={tenant: frozenset({role})})


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


def draft(given: TransformInput, **changes: Any) -> EventDraft:
    """A plugin that knows one thing to say: what the body says."""
    fields: dict[str, Any] = {
        "external_key": f"push/{given.key}",
        "category": CATEGORY_DELIVERY,
        "type": "github.push",
        "severity": SEVERITY_INFO,
        "title": given.payload.decode(errors="replace")[:200] or "nothing",
        "attributes": b"{}",
    }
    return EventDraft(**(fields | changes))


def became(given: TransformInput, *drafts: EventDraft) -> TransformOutcome:
    events = TransformOutcome.EventDrafts(drafts=drafts or [draft(given)])
    return TransformOutcome(input_id=given.input_id, events=events)


def each(
    request: broker_pb2.TransformDataRequest,
    outcome: Callable[[TransformInput], TransformOutcome | None] = became,
) -> broker_pb2.TransformDataResponse:
    """Answer input by input; None leaves one out."""
    response = broker_pb2.TransformDataResponse()
    for group in request.groups:
        outcomes = [answer for given in group.inputs if (answer := outcome(given)) is not None]
        response.results.add(outcomes=outcomes, plugin_version="1.2.3", revision=1)
    return response


class Neighbours(tokens_pb2_grpc.TokenServiceServicer, broker_pb2_grpc.BrokerServiceServicer):
    """The credentials service and the registry, as far as a mapper speaks with them."""

    def __init__(self) -> None:
        self.answer: Answer = self.became
        self.requests: list[broker_pb2.TransformDataRequest] = []
        self.traces: list[str] = []

    @staticmethod
    async def became(request: broker_pb2.TransformDataRequest) -> broker_pb2.TransformDataResponse:
        return each(request)

    def answers(self, outcome: Callable[[TransformInput], TransformOutcome | None]) -> None:
        async def answer(request: broker_pb2.TransformDataRequest) -> broker_pb2.TransformDataResponse:
            return each(request, outcome)

        self.answer = answer

    def refuses_for_now(self) -> None:
        """Every group fails, as if its plugin were down."""

        async def answer(request: broker_pb2.TransformDataRequest) -> broker_pb2.TransformDataResponse:
            failure = Failure(kind=FAILURE_KIND_TRANSIENT, reason="PLUGIN_DOWN")
            results = [broker_pb2.TransformDataResponse.Result(failure=failure) for _ in request.groups]
            return broker_pb2.TransformDataResponse(results=results)

        self.answer = answer

    async def TransformData(  # noqa: N802
        self, request: broker_pb2.TransformDataRequest, _: Any
    ) -> broker_pb2.TransformDataResponse:
        self.requests.append(request)
        call = present_call()
        assert call is not None
        self.traces.append(call.metadata("traceparent") or "")
        return await self.answer(request)

    async def GetSigningKeys(  # noqa: N802
        self, _: Any, __: Any
    ) -> tokens_pb2.GetSigningKeysResponse:
        response = tokens_pb2.GetSigningKeysResponse(
            jwks=json.dumps({"keys": [KEY.as_dict(private=False)]}).encode()
        )
        response.max_age.FromSeconds(300)
        return response

    async def ExchangeToken(  # noqa: N802
        self, request: tokens_pb2.ExchangeTokenRequest, _: Any
    ) -> tokens_pb2.ExchangeTokenResponse:
        who = ADMIN if request.api_token == "admin-token" else MAPPER_ITSELF
        response = tokens_pb2.ExchangeTokenResponse(access_token=token_for(who))
        response.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=5))
        return response


def token_for(principal: Principal) -> str:
    return TokenSigner(KEY, SystemClock()).sign(principal, timedelta(minutes=5))


@asynccontextmanager
async def neighbours() -> AsyncIterator[tuple[Neighbours, Address]]:
    served = Neighbours()  # type: ignore[abstract]  # what else there is, a mapper does not call
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("neighbours"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0.0,
    )
    server.add(tokens_pb2_grpc.add_TokenServiceServicer_to_server, served)
    server.add(broker_pb2_grpc.add_BrokerServiceServicer_to_server, served)
    async with server:
        yield served, server.address


@dataclass
class Installation:
    """What mappers of one test have in common."""

    admin: DatabaseUrl
    nats: str
    neighbours: Neighbours
    address: Address
    directory: Path
    ports: list[Port] = field(default_factory=list)

    def settings(self) -> MapperSettings:
        self.ports += [Port(), Port()]
        grpc, http = self.ports[-2:]
        token = self.directory / "token"
        token.touch(mode=0o600)
        token.write_text("api-token")
        return MapperSettings(
            listen=Address.parse(grpc.address),
            http=Address.parse(http.address),
            database_url=PostgresUrl(self.login(MAPPER.service).reveal()),
            worker_database_url=PostgresUrl(self.login(MAPPER.worker).reveal()),
            nats_url=NatsUrl(self.nats),
            credentials=self.address,
            registry=self.address,
            token_file=str(token),
            log_format="text",
            drain_seconds=2.0,
            stream_bytes=64 * 1024 * 1024,
        )

    def close(self) -> None:
        for port in self.ports:
            port.close()

    def login(self, role: str) -> DatabaseUrl:
        return self.admin.login(role, PASSWORDS[role])

    async def rows(self, query: str, *values: object) -> list[asyncpg.Record]:
        """As the superuser, whom no wall stops."""
        connection = await asyncpg.connect(self.admin.reveal(), server_settings={"search_path": "mapper"})
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()

    async def published(self, events: int, within: float = 30.0) -> None:
        async def all_are() -> bool:
            return await self.count("outbox", "published_at is not null") == events

        await until(all_are, within)

    async def count(self, table: str, where: str = "true") -> int:
        found: int = (await self.rows(f"select count(*) as n from {table} where {where}"))[0]["n"]  # noqa: S608
        return found

    @asynccontextmanager
    async def mapper(self) -> AsyncIterator[Mapper]:
        """A whole mapper in this event loop, from its own composition root."""
        settings, stop = self.settings(), asyncio.Event()
        serving = asyncio.create_task(serve(settings, stop))
        try:
            mapper = Mapper(settings, serving, stop)
            await mapper.up()
            yield mapper
        finally:
            stop.set()
            await serving

    @asynccontextmanager
    async def process(self) -> AsyncIterator[MapperProcess]:
        """A real process on a settings file of its own; ended with the block if nobody ended it."""
        settings = self.settings()
        values = {name: getattr(settings, name) for name in settings.__struct_fields__}
        shown = {
            name: value.reveal() if isinstance(value, Secret) else str(value)
            for name, value in values.items()
            if isinstance(value, Secret | Address | str)
        }
        path = self.directory / f"mapper-{len(self.ports)}.toml"
        path.write_text("\n".join(["[mapper]", *(f"{k} = {json.dumps(v)}" for k, v in shown.items())]))
        process = MapperProcess(settings, path)
        await process.start()
        try:
            yield process
        finally:
            await process.end()


@dataclass
class Mapper:
    settings: MapperSettings
    serving: asyncio.Task[None] | None = None
    stop: asyncio.Event | None = None

    @asynccontextmanager
    async def as_(self, principal: Principal) -> AsyncIterator[Caller]:
        async def token() -> str:
            return token_for(principal)

        async with connect(str(self.settings.listen), token) as channel:
            yield Caller(channel)

    async def up(self) -> None:
        """Wait until it answers; what it depends on may still be away."""

        async def answers() -> bool:
            assert self.serving is None or not self.serving.done(), self.serving
            try:
                async with self.as_(GATEWAY) as gateway:
                    await gateway.accept([])
            except Problem:
                return False
            return True

        await until(answers, 60.0)


class MapperProcess(Mapper):
    def __init__(self, settings: MapperSettings, config: Path) -> None:
        super().__init__(settings)
        self.config = config
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.config.with_suffix(".log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.mapper", "--config", str(self.config), stdout=log, stderr=log
            )
        await self.up()

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            async with asyncio.timeout(30):
                await self.process.wait()


class Caller:
    def __init__(self, channel: Connection) -> None:
        self.inbox = inbox_pb2_grpc.InboxServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.subscriptions = subscriptions_pb2_grpc.SubscriptionServiceStub(channel)

    async def accept(self, deliveries: Iterable[inbox_pb2.DeliveryInput]) -> list[inbox_pb2.AcceptOutcome]:
        request = inbox_pb2.AcceptDeliveriesRequest(deliveries=deliveries)
        return list((await self.inbox.AcceptDeliveries(request)).outcomes)

    async def delivery(self, tenant: str, identity: str) -> events_pb2.Delivery:
        name = f"tenants/{tenant}/deliveries/{identity}"
        return await self.events.GetDelivery(events_pb2.GetDeliveryRequest(name=name))

    async def list(self, tenant: str, **wanted: Any) -> list[Event]:
        request = events_pb2.ListEventsRequest(parent=f"tenants/{tenant}", page_size=1000, **wanted)
        return list((await self.events.ListEvents(request)).events)

    async def subscribe(self, tenant: str, identity: str, **wanted: Any) -> subscriptions_pb2.Subscription:
        request = subscriptions_pb2.CreateSubscriptionRequest(
            parent=f"tenants/{tenant}",
            subscription_id=identity,
            subscription=subscriptions_pb2.Subscription(**wanted),
        )
        return await self.subscriptions.CreateSubscription(request)


class Listener:
    """Somebody who subscribes, acknowledges, and calls again whenever the stream is cut."""

    def __init__(self, mapper: Mapper, tenant: str, subscription: str) -> None:
        self._mapper = mapper
        self._tenant = f"tenants/{tenant}"
        self._subscription = f"tenants/{tenant}/subscriptions/{subscription}"
        self._principal = member_of(tenant)
        self.heard: list[Event] = []

    @property
    def ids(self) -> set[str]:
        return {event.id for event in self.heard}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Listener]:
        task = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self) -> None:
        request = subscriptions_pb2.SubscribeRequest(
            parent=self._tenant, subscription=self._subscription, max_unacknowledged=100
        )
        while True:
            try:
                async with self._mapper.as_(self._principal) as caller:
                    async for told in caller.subscriptions.Subscribe(request):
                        self.heard += told.events
                        await caller.subscriptions.AcknowledgeEvents(
                            subscriptions_pb2.AcknowledgeEventsRequest(
                                name=self._subscription, ack_token=told.ack_token
                            )
                        )
            except Problem:
                await asyncio.sleep(0.1)


def delivery(number: int | str, tenant: str = "acme", connection: str = "github", **more: Any) -> Any:
    fields: dict[str, Any] = {
        "connection": f"tenants/{tenant}/connections/{connection}",
        "webhook": "webhook",
        "delivery_id": str(uuid.uuid4()),
        "provider_delivery_id": str(number),
        "event_type": "push",
        "body": f'{{"number": "{number}"}}'.encode(),
        "content_type": "application/json",
        "verified": True,
    }
    message = inbox_pb2.DeliveryInput(**(fields | more))
    if "received_at" not in more:
        message.received_at.FromDatetime(datetime.now(UTC))
    return message


def deliveries(numbers: Iterable[int], **more: Any) -> Sequence[inbox_pb2.DeliveryInput]:
    return [delivery(number, **more) for number in numbers]


async def until(holds: Callable[[], Awaitable[object]], within: float = 30.0) -> None:
    ends = time.monotonic() + within
    while not await holds():
        assert time.monotonic() < ends, f"not within {within:g} s"
        await asyncio.sleep(0.02)


async def forget_stream(url: str) -> None:
    client = await nats.connect(url)
    try:
        for name in (STREAM, stream.STREAM):
            with suppress(nats.js.errors.NotFoundError):
                await client.jetstream().delete_stream(name)
    finally:
        await client.close()


async def settled(installation: Installation, within: float = 30.0) -> None:
    """Wait until nothing waits in the inbox."""

    async def nothing_waits() -> bool:
        return await installation.count("inbox", "state = 0") == 0

    await until(nothing_waits, within)


async def account(installation: Installation, tenants: Sequence[str] = ("acme",)) -> dict[str, int]:
    """By the mapper's own query, under its own role."""
    store = Store(installation.login(MAPPER.service), MAPPER, application="tests")
    try:
        return dict(await WorkStore(store).account(tenants))
    finally:
        await store.aclose()
