"""One GitHub App, one secret, two tenants: each installation's deliveries reach their own tenant, and nothing else does."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import httpx

from foundation.errors import Code, Problem
from foundation.identity.session import Session
from foundation.process.testing import until
from foundation.rpc import connect
from tests.scenarios.path import SECRET, Receiver, push
from tests.scenarios.suite import Standing
from tieline.credentials.v1 import credentials_pb2_grpc, tenants_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import CreateCredentialRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.plugin.v1.webhook_pb2 import Routing
from tieline.registry.v1 import apps_pb2_grpc, connections_pb2_grpc
from tieline.registry.v1.apps_pb2 import App, ApproveAccountKeyRequest, CreateAppRequest, DeleteAppRequest
from tieline.registry.v1.connections_pb2 import (
    AccountKey,
    Connection,
    CreateConnectionRequest,
    DeleteConnectionRequest,
    SlotBinding,
)


async def test_two_installations_of_one_app_reach_two_tenants(shared: Standing, tenant: str) -> None:
    endpoints = shared.endpoints
    owner, tenants = f"tenants/{tenant}", [f"tenants/{tenant}-{n}" for n in (1, 2)]
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        session = Session(
            await open_(connect(endpoints["credentials"])),
            Path(endpoints["admin_token_file"]).read_text().strip(),
        )
        credentials, registry, mapper = [
            await open_(connect(endpoints[name], session.token))
            for name in ("credentials", "registry", "mapper")
        ]
        for name in (owner, *tenants):
            await tenants_pb2_grpc.TenantServiceStub(credentials).CreateTenant(
                CreateTenantRequest(tenant_id=name.removeprefix("tenants/"))
            )
        await credentials_pb2_grpc.CredentialServiceStub(credentials).CreateCredential(
            CreateCredentialRequest(
                parent=owner,
                credential_id="app-hook",
                value=SecretValue(webhook_secret=WebhookSecret(secret=SECRET)),
            )
        )
        apps = apps_pb2_grpc.AppServiceStub(registry)
        made = await apps.CreateApp(
            CreateAppRequest(
                app_id=tenant,
                app=App(
                    plugin="plugins/github",
                    owner=owner,
                    credentials=[SlotBinding(slot="webhook", credential=f"{owner}/credentials/app-hook")],
                    unmatched=Routing.UNMATCHED_DEAD_LETTER,
                ),
            )
        )
        connections = connections_pb2_grpc.ConnectionServiceStub(registry)
        for number, name in enumerate(tenants, 1):
            wanted = Connection(
                plugin="plugins/github",
                app=made.name,
                account_keys=[AccountKey(key=f"10{number}"), AccountKey(key="300")],
            )
            connection = await connections.CreateConnection(
                CreateConnectionRequest(parent=name, connection_id="github", connection=wanted)
            )
            await apps.ApproveAccountKey(
                ApproveAccountKeyRequest(connection=connection.name, account_key=f"10{number}")
            )
        [hook] = made.webhook_urls.values()
        client = await open_(httpx.AsyncClient(timeout=30))
        one, two, theirs = (Receiver(name, hook, SECRET, client, mapper) for name in (*tenants, owner))

        probes = count()

        async def is_routed(account: int) -> bool:
            """Deliveries before the gateway knows of the account are its owner's, none of them lost."""
            answer = await one.send(
                push(0) | {"installation": {"id": account}}, f"probe-{account}-{next(probes)}"
            )
            assert answer.status_code in (202, 404), answer.text
            return bool(await (one if account == 101 else two).events())

        await until(lambda: is_routed(101), 60)
        await until(lambda: is_routed(102), 60)
        answers = await asyncio.gather(
            *(
                one.send(push(n, f"r{n % 2}/x") | {"installation": {"id": 101 + n % 2}}, f"d-{n}")
                for n in range(1, 21)
            )
        )
        assert {answer.status_code for answer in answers} == {202}
        assert (await one.send(push(99) | {"installation": {"id": 300}}, "unclaimed")).status_code == 202
        assert (
            await one.send(push(98) | {"installation": {"id": 101}}, "forged", secret="another")
        ).status_code == 401
        for receiver, mine in ((one, "r0/x"), (two, "r1/x")):
            found = await receiver.stored(11)
            about = [event for event in found if "acme/shop" not in str(event.entities)]
            assert len(about) == 10
            assert all(mine in str(event.entities) for event in about)
            assert all(event.connection == f"{receiver.name}/connections/github" for event in found)
        assert await theirs.events() == [], "what nobody claims is a dead letter, and no event"
        for name in tenants:
            await connections.DeleteConnection(DeleteConnectionRequest(name=f"{name}/connections/github"))

        async def is_removed() -> bool:
            try:
                await apps.DeleteApp(DeleteAppRequest(name=made.name))
            except Problem as problem:
                if problem.code is Code.STATE_REFUSES:
                    return False  # connections end in the background, and until then it is used
                raise
            return True

        await until(is_removed, 60)
