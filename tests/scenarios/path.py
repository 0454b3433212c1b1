"""One delivery's way, for scenarios: a tenant that receives, a provider that sends, somebody who listens.

Scenarios talk to an installation only through what its users have: the gateway's HTTP, the gRPC APIs, the
`tieline` command. They do not know whether its services are processes or live in this event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import grpc.aio
import httpx

from foundation.errors import Code, Problem
from foundation.identity.session import Session
from foundation.rpc import connect
from tieline.credentials.v1 import credentials_pb2_grpc, tenants_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import CreateCredentialRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1 import events_pb2_grpc, subscriptions_pb2_grpc
from tieline.mapper.v1.events_pb2 import ListEventsRequest
from tieline.mapper.v1.subscriptions_pb2 import (
    AcknowledgeEventsRequest,
    CreateSubscriptionRequest,
    SubscribeRequest,
    Subscription,
)
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import (
    Connection,
    CreateConnectionRequest,
    GetConnectionRequest,
    SlotBinding,
)

SECRET = "what GitHub and acme both know"


class Installation(Protocol):
    """What a scenario runs on."""

    data: Path

    @property
    def endpoints(self) -> dict[str, str]: ...


def push(number: int, repository: str = "acme/shop") -> dict[str, Any]:
    """A push of one commit, as GitHub describes one; every number is another."""
    sha = hashlib.sha1(f"{repository} {number}".encode(), usedforsecurity=False).hexdigest()
    before = hashlib.sha1(f"{repository} {number - 1}".encode(), usedforsecurity=False).hexdigest()
    url = f"https://github.com/{repository}"
    author = {"name": "Ada", "email": "ada@acme.example", "username": "ada"}
    commit = {
        "id": sha,
        "message": f"change {number}",
        "timestamp": "2026-01-01T12:00:00Z",
        "url": f"{url}/commit/{sha}",
        "author": author,
        "committer": author,
        "added": [],
        "removed": [],
        "modified": ["shop.py"],
        "distinct": True,
    }
    return {
        "ref": "refs/heads/main",
        "before": before,
        "after": sha,
        "created": False,
        "deleted": False,
        "forced": False,
        "compare": f"{url}/compare/{before[:12]}...{sha[:12]}",
        "commits": [commit],
        "head_commit": commit,
        "repository": {
            "id": 1,
            "name": repository.rpartition("/")[2],
            "full_name": repository,
            "html_url": url,
            "default_branch": "main",
            "owner": {"login": "acme", "name": "acme", "id": 2},
        },
        "pusher": {"name": "ada", "email": "ada@acme.example"},
        "sender": {"login": "ada", "id": 3, "html_url": "https://github.com/ada"},
    }


@dataclass
class Receiver:
    """A tenant with a GitHub connection, and the API as its administrator sees it."""

    name: str
    hook: str
    secret: str
    client: httpx.AsyncClient
    mapper: grpc.aio.Channel

    async def send(
        self, payload: dict[str, Any], delivery: str, event: str = "push", secret: str | None = None
    ) -> httpx.Response:
        """As GitHub sends."""
        body = json.dumps(payload).encode()
        key = (self.secret if secret is None else secret).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "GitHub-Hookshot/0000000",
            "x-github-delivery": delivery,
            "x-github-event": event,
            "x-hub-signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest(),
        }
        return await self.client.post(self.hook, content=body, headers=headers)

    async def events(self) -> list[Event]:
        """All that are stored, latest first."""
        stub = events_pb2_grpc.EventServiceStub(self.mapper)
        found: list[Event] = []
        token = ""
        while True:
            page = await stub.ListEvents(
                ListEventsRequest(parent=self.name, page_size=1000, page_token=token)
            )
            found.extend(page.events)
            token = page.next_page_token
            if not token:
                return found

    async def stored(self, count: int, within: float = 120.0) -> list[Event]:
        """Wait until at least so many are stored."""
        async with asyncio.timeout(within):
            while True:
                try:
                    if len(found := await self.events()) >= count:
                        return found
                except Problem:
                    pass  # what is being killed does not answer for a moment
                await asyncio.sleep(0.1)

    async def subscribe(self, subscription: str) -> Listener:
        """A durable cursor from now on, and somebody who listens to it."""
        stub = subscriptions_pb2_grpc.SubscriptionServiceStub(self.mapper)
        await stub.CreateSubscription(
            CreateSubscriptionRequest(
                parent=self.name,
                subscription_id=subscription,
                subscription=Subscription(stream=Subscription.Stream()),
            )
        )
        return Listener(self, f"{self.name}/subscriptions/{subscription}")


@dataclass
class Listener:
    receiver: Receiver
    subscription: str
    heard: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def hear(self, ids: set[str], within: float = 120.0) -> None:
        """Wait until all of these were heard."""
        async with asyncio.timeout(within):
            while not ids <= set(self.heard):
                assert self.task is not None
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.05)

    async def _listen(self) -> None:
        """Cut off, it asks again, and what it has not acknowledged comes again."""
        stub = subscriptions_pb2_grpc.SubscriptionServiceStub(self.receiver.mapper)
        request = SubscribeRequest(parent=self.receiver.name, subscription=self.subscription)
        while True:
            try:
                async for told in stub.Subscribe(request):
                    self.heard.extend(event.id for event in told.events)
                    if told.ack_token:
                        await stub.AcknowledgeEvents(
                            AcknowledgeEventsRequest(name=self.subscription, ack_token=told.ack_token)
                        )
            except Problem:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def receiving(installation: Installation, tenant: str = "acme") -> AsyncIterator[Receiver]:
    """A tenant with a webhook secret and a GitHub connection: set up as its administrator would, or as it is."""
    endpoints = installation.endpoints
    api_token = Path(endpoints["admin_token_file"]).read_text().strip()
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        session = Session(await open_(connect(endpoints["credentials"])), api_token)
        credentials, registry, mapper = [
            await open_(connect(endpoints[name], session.token))
            for name in ("credentials", "registry", "mapper")
        ]
        name = f"tenants/{tenant}"
        tenants = tenants_pb2_grpc.TenantServiceStub(credentials)
        connections = connections_pb2_grpc.ConnectionServiceStub(registry)
        try:
            await tenants.CreateTenant(CreateTenantRequest(tenant_id=tenant))
        except Problem as problem:
            if problem.code is not Code.ALREADY_EXISTS:
                raise
            request = GetConnectionRequest(name=f"{name}/connections/github-main")
            connection = await connections.GetConnection(request)
        else:
            await _store_secret(credentials, name)
            connection = await connections.CreateConnection(_connection_request(name))
        [hook] = connection.webhook_urls.values()
        client = await open_(httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=64)))
        await _until_known(client, hook)
        yield Receiver(name, hook, SECRET, client, mapper)


async def _until_known(client: httpx.AsyncClient, hook: str) -> None:
    """A gateway whose registry has just been started again hears of new endpoints some seconds later."""
    async with asyncio.timeout(90):
        while True:
            try:
                if (await client.post(hook, content=b"unsigned")).status_code != 404:
                    return
            except httpx.TransportError:
                pass  # it is being started again
            await asyncio.sleep(0.05)


async def _store_secret(credentials: grpc.aio.Channel, tenant: str) -> None:
    await credentials_pb2_grpc.CredentialServiceStub(credentials).CreateCredential(
        CreateCredentialRequest(
            parent=tenant,
            credential_id="github-hook",
            value=SecretValue(webhook_secret=WebhookSecret(secret=SECRET)),
        )
    )


def _connection_request(tenant: str) -> CreateConnectionRequest:
    return CreateConnectionRequest(
        parent=tenant,
        connection_id="github-main",
        connection=Connection(
            plugin="plugins/github",
            settings=b"{}",
            credentials=[SlotBinding(slot="webhook", credential=f"{tenant}/credentials/github-hook")],
        ),
    )
