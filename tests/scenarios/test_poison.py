"""One delivery that ends its plugin, among five hundred: all the others become events, it becomes a dead letter."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import tomllib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import httpx

from foundation.engines.testing import Served
from foundation.identity.session import Session
from foundation.process.testing import until
from foundation.rpc import connect
from tests.scenarios.inside import Inside, inside
from tests.services.registry.plugins import make_plugin
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, Failure
from tieline.credentials.v1 import credentials_pb2_grpc, tenants_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import CreateCredentialRequest
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.registry.v1 import connections_pb2_grpc, processes_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, SlotBinding
from tieline.registry.v1.processes_pb2 import ListProcessesRequest, Process

SECRET = "it is no secret here"
CONNECTIONS, EACH = 5, 100
POISON = (3, 57)


async def test_one_poison_among_five_hundred_becomes_a_dead_letter_and_nobody_else_notices(
    short_dir: Path, engines: Served
) -> None:
    """Feature: integrations, Property 5 (a poison input fails alone)."""
    make_plugin(short_dir / "plugins", "one")
    async with (
        AsyncExitStack() as stack,
        inside(short_dir / "data", engines, short_dir / "plugins") as running,
    ):
        admin = await admin_of(running, stack)
        hooks = await _connected(admin)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        await asyncio.gather(*(_send(client, hook, number) for number, hook in enumerate(hooks)))

        async def settled() -> bool:
            return not await _sql(running, "select from mapper.inbox where state = 0")

        await until(settled, 90)
        [buried] = await _sql(running, "select * from mapper.dead_letters")
        failure = Failure.FromString(buried["failure"])
        assert buried["connection"] == f"tenants/acme/connections/one-{POISON[0]}"
        assert buried["stage"] == DeadLetter.STAGE_POISON
        assert (failure.kind, failure.reason) == (FAILURE_KIND_INVALID_INPUT, "POISON")
        assert "SIGKILL" in failure.message, "the crash is told with it"
        events = await _sql(running, "select connection from mapper.events")
        assert len(events) == CONNECTIONS * EACH - 1

        stub = processes_pb2_grpc.ProcessServiceStub(admin["registry"])
        [process] = (await stub.ListProcesses(ListProcessesRequest(parent="plugins/one"))).processes
        assert len(process.crashes) == 3
        assert all(crash.suspect_inputs for crash in process.crashes)
        assert process.state != Process.STATE_QUARANTINED


async def admin_of(running: Inside, stack: AsyncExitStack) -> dict[str, grpc.aio.Channel]:
    api_token = Path(running.endpoints["admin_token_file"]).read_text().strip()
    plain = await stack.enter_async_context(connect(running.endpoints["credentials"]))
    session = Session(plain, api_token)
    return {
        name: await stack.enter_async_context(connect(running.endpoints[name], session.token))
        for name in ("credentials", "registry")
    }


async def _connected(admin: dict[str, grpc.aio.Channel]) -> list[str]:
    await tenants_pb2_grpc.TenantServiceStub(admin["credentials"]).CreateTenant(
        CreateTenantRequest(tenant_id="acme")
    )
    value = SecretValue(webhook_secret=WebhookSecret(secret=SECRET))
    await credentials_pb2_grpc.CredentialServiceStub(admin["credentials"]).CreateCredential(
        CreateCredentialRequest(parent="tenants/acme", credential_id="hook", value=value)
    )
    connections = connections_pb2_grpc.ConnectionServiceStub(admin["registry"])
    binding = SlotBinding(slot="webhook", credential="tenants/acme/credentials/hook")
    hooks = []
    for number in range(CONNECTIONS):
        wanted = Connection(plugin="plugins/one", settings=b"{}", credentials=[binding])
        request = CreateConnectionRequest(
            parent="tenants/acme", connection_id=f"one-{number}", connection=wanted
        )
        [hook] = (await connections.CreateConnection(request)).webhook_urls.values()
        hooks.append(hook)
    return hooks


async def _send(client: httpx.AsyncClient, hook: str, number: int) -> None:
    for index in range(EACH):
        word = "die" if (number, index) == POISON else f"{number}-{index}"
        body = b'{"say": "%s"}' % word.encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"content-type": "application/json", "x-signature": signature}

        async def accepted() -> bool:
            answer = await client.post(hook, content=body, headers=headers)  # noqa: B023 - used at once
            # A gateway that has just started may not know the endpoint yet, or its secret.
            return answer.status_code in (200, 202)

        await until(accepted, 30)


async def _sql(running: Inside, statement: str) -> Sequence[Any]:
    """As the mapper itself sees it."""
    settings = tomllib.loads((running.data / "run/mapper.toml").read_text())["mapper"]
    connection = await asyncpg.connect(settings["database_url"])
    try:
        async with connection.transaction():
            await connection.execute("select set_config('tieline.tenants', '{acme}', true)")
            rows: Sequence[Any] = await connection.fetch(statement)
            return rows
    finally:
        await connection.close()
