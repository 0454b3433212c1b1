"""The gateway's neighbours as the contract describes them, small enough to be steered by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from joserfc.jwk import OKPKey
from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.rpc import RpcServer
from foundation.settings import Address
from foundation.telemetry import Metrics
from gateway.main import serve
from gateway.settings import GatewaySettings
from tieline.common.v1.failure_pb2 import FAILURE_KIND_PERMISSION_DENIED, Failure
from tieline.credentials.v1 import (
    leases_pb2,
    leases_pb2_grpc,
    tenants_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from tieline.credentials.v1.tenants_pb2 import Tenant, WatchTenantsResponse
from tieline.mapper.v1 import inbox_pb2, inbox_pb2_grpc
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, DeliveryInput
from tieline.plugin.v1.webhook_pb2 import Body, Extractor, Signature, Webhook
from tieline.registry.v1 import endpoints_pb2, endpoints_pb2_grpc
from tieline.registry.v1.endpoints_pb2 import Endpoint

KEY = OKPKey.generate_key("Ed25519")
API_TOKEN = "tl_gateway"
SECRET = b"it is no secret here"
CONNECTION = "tenants/acme/connections/main"


def github_webhook(**changed: Any) -> Webhook:
    """Signed as GitHub signs."""
    return Webhook(
        name="events",
        signature=Signature(
            hmac=Signature.Hmac(signature=Extractor(header="x-hub-signature-256", prefix="sha256="))
        ),
        delivery_id=Extractor(header="x-github-delivery"),
        event_type=[Extractor(header="x-github-event"), Extractor(json="/action")],
        body=Body(form=Body.FORM_JSON),
        **changed,
    )


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


class Tokens(tokens_pb2_grpc.TokenServiceServicer):
    async def ExchangeToken(self, request: Any, context: Any) -> tokens_pb2.ExchangeTokenResponse:  # noqa: ARG002, N802
        if request.api_token != API_TOKEN:
            raise Problem(Code.TOKEN_INVALID, why="it is unknown")
        gateway = Principal(Kind.SERVICE, "gateway", frozenset({Role.SERVICE, Role.INGEST}))
        access = TokenSigner(KEY, SystemClock()).sign(gateway, timedelta(minutes=5))
        answer = tokens_pb2.ExchangeTokenResponse(access_token=access)
        answer.expire_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=5))
        return answer


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class Leases(leases_pb2_grpc.LeaseServiceServicer):
    secrets: dict[str, list[bytes]] = field(default_factory=lambda: {CONNECTION: [SECRET]})
    lifetime: timedelta = timedelta(minutes=10)
    asked: int = 0
    hold: asyncio.Event = field(default_factory=open_gate)
    """Questions wait for it."""
    told: list[leases_pb2.Lease] = field(default_factory=list)
    """What is said of leases; more is said once `changed` is set."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    """What was told last is on its way: the end of this server cannot take it back."""

    async def WatchLeases(  # noqa: N802
        self,
        request: Any,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[leases_pb2.WatchLeasesResponse]:
        while True:
            await self.changed.wait()
            self.changed.clear()
            yield leases_pb2.WatchLeasesResponse(leases=self.told)
            if not self.changed.is_set():
                self.sent.set()

    def tell(self, state: leases_pb2.Lease.State.ValueType, version: int = 1) -> None:
        self.told = [leases_pb2.Lease(name=f"{CONNECTION}/{version}", state=state)]
        self.sent.clear()
        self.changed.set()

    async def AcquireLeases(self, request: Any, context: Any) -> leases_pb2.AcquireLeasesResponse:  # noqa: ARG002, N802
        self.asked += 1
        await self.hold.wait()
        answer = leases_pb2.AcquireLeasesResponse()
        for one in request.requests:
            outcome = answer.outcomes.add()
            if one.subject not in self.secrets:
                outcome.failure.CopyFrom(Failure(kind=FAILURE_KIND_PERMISSION_DENIED, message="no grant"))
                continue
            newest, *older = self.secrets[one.subject]
            outcome.secret.fields["secret"] = newest
            outcome.secret.previous_secrets.extend(older)
            outcome.secret.previous_versions.extend(range(len(older), 0, -1))
            outcome.secret.lease.name = f"{one.subject}/{1 + len(older)}"
            outcome.secret.lease.version.version = 1 + len(older)
            outcome.secret.lease.expire_time.FromDatetime(datetime.now(UTC) + self.lifetime)
        return answer


class Tenants(tenants_pb2_grpc.TenantServiceServicer):
    def __init__(self) -> None:
        self.states = {"acme": Tenant.STATE_ACTIVE}
        self.changed = asyncio.Event()

    async def WatchTenants(  # noqa: N802
        self,
        request: Any,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[WatchTenantsResponse]:
        while True:
            self.changed.clear()
            tenants = [Tenant(name=f"tenants/{tenant}", state=state) for tenant, state in self.states.items()]
            yield WatchTenantsResponse(tenants=tenants)
            await self.changed.wait()


class Endpoints(endpoints_pb2_grpc.EndpointServiceServicer):
    def __init__(self) -> None:
        self.picture: dict[str, Endpoint] = {
            "hook": Endpoint(endpoint="hook", connection=CONNECTION, webhook=github_webhook())
        }
        self.changed = asyncio.Event()

    async def WatchEndpoints(  # noqa: N802
        self,
        request: Any,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[endpoints_pb2.WatchEndpointsResponse]:
        while True:
            self.changed.clear()
            *firsts, last = self.picture.values()
            for endpoint in firsts:
                yield endpoints_pb2.WatchEndpointsResponse(endpoints=[endpoint], more=True)
            yield endpoints_pb2.WatchEndpointsResponse(endpoints=[last])
            await self.changed.wait()


Accept = Callable[[list[DeliveryInput]], Awaitable[list[AcceptOutcome]]]


class Inbox(inbox_pb2_grpc.InboxServiceServicer):
    def __init__(self) -> None:
        self.batches: list[list[DeliveryInput]] = []
        self.seen: dict[str, str] = {}
        self.accept: Accept = self.remember

    @property
    def deliveries(self) -> list[DeliveryInput]:
        return [delivery for batch in self.batches for delivery in batch]

    async def remember(self, deliveries: list[DeliveryInput]) -> list[AcceptOutcome]:
        outcomes = []
        for delivery in deliveries:
            first = self.seen.setdefault(delivery.provider_delivery_id, delivery.delivery_id)
            new = first == delivery.delivery_id
            result = AcceptOutcome.RESULT_ACCEPTED if new else AcceptOutcome.RESULT_DUPLICATE
            outcomes.append(AcceptOutcome(result=result, delivery_id=first))
        return outcomes

    async def AcceptDeliveries(self, request: Any, context: Any) -> inbox_pb2.AcceptDeliveriesResponse:  # noqa: ARG002, N802
        self.batches.append(list(request.deliveries))
        outcomes = await self.accept(list(request.deliveries))
        return inbox_pb2.AcceptDeliveriesResponse(outcomes=outcomes)


@dataclass
class Edge:
    """A gateway with its neighbours, all in this event loop, talking over real sockets."""

    url: str
    client: httpx.AsyncClient
    leases: Leases
    tenants: Tenants
    endpoints: Endpoints
    inbox: Inbox
    servers: dict[str, RpcServer]

    async def post(self, body: bytes, headers: dict[str, str], endpoint: str = "hook") -> httpx.Response:
        return await self.client.post(f"{self.url}/hooks/{endpoint}", content=body, headers=headers)


async def _server(stack: AsyncExitStack, add: Any, servicer: Any) -> RpcServer:
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("neighbour"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0,
    )
    for one, what in zip(add, servicer, strict=True):
        server.add(one, what)
    await stack.enter_async_context(server)
    await server.set_ready(ready=True)
    return server


@asynccontextmanager
async def edge(directory: Path, port: int, body_seconds: float = 30.0) -> AsyncIterator[Edge]:
    # What is left out of the contract answers UNIMPLEMENTED, by the generated base.
    leases, tenants, endpoints, inbox = Leases(), Tenants(), Endpoints(), Inbox()  # type: ignore[abstract]
    token_file = directory / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(API_TOKEN)
    async with AsyncExitStack() as stack:
        servers = {
            "credentials": await _server(
                stack,
                (
                    tokens_pb2_grpc.add_TokenServiceServicer_to_server,
                    leases_pb2_grpc.add_LeaseServiceServicer_to_server,
                    tenants_pb2_grpc.add_TenantServiceServicer_to_server,
                ),
                (Tokens(), leases, tenants),  # type: ignore[abstract]
            ),
            "registry": await _server(
                stack, (endpoints_pb2_grpc.add_EndpointServiceServicer_to_server,), (endpoints,)
            ),
            "mapper": await _server(stack, (inbox_pb2_grpc.add_InboxServiceServicer_to_server,), (inbox,)),
        }
        settings = GatewaySettings(
            http=Address("127.0.0.1", port),
            token_file=str(token_file),
            log_level="error",
            drain_seconds=1,
            body_seconds=body_seconds,
            credentials=servers["credentials"].address,
            registry=servers["registry"].address,
            mapper=servers["mapper"].address,
        )
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(settings, stop))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        url = f"http://127.0.0.1:{port}"
        try:
            await ready(client, url, serving)
            yield Edge(url, client, leases, tenants, endpoints, inbox, servers)
        finally:
            stop.set()
            await serving


async def ready(client: httpx.AsyncClient, url: str, serving: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while True:
            if serving.done():
                await serving
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)
