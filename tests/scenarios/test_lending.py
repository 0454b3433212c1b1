"""A credential's whole way to a plugin: granted with its connection, lent by the vault, replaced and taken back."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from foundation.clock import SystemClock
from foundation.engines.testing import Served as Engines
from foundation.identity.session import Session, read_token
from foundation.process.testing import until
from foundation.rpc import connect
from services.registry.broker.broker import Broker
from services.registry.broker.failures import CallFailed
from services.registry.broker.purse import VaultPurse
from services.registry.broker.serving import Binding, FixedConnections, Served
from tests.scenarios.inside import Inside, inside
from tests.scenarios.test_poison import admin_of
from tests.services.registry.plugins import hosting
from tests.services.registry.raw import LOOK, calls, found, look, make_raw, ref
from tieline.credentials.v1 import credentials_pb2_grpc, tenants_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import (
    AddCredentialVersionRequest,
    CreateCredentialRequest,
    RevokeCredentialRequest,
)
from tieline.credentials.v1.secrets_pb2 import BearerToken, SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, SlotBinding

NAME = "tenants/acme/credentials"
ONE = Served(
    connection="tenants/acme/connections/raw-1",
    plugin="raw",
    instance="instance-raw-1",
    revision=1,
    settings=b"{}",
    bindings=(Binding("webhook"), Binding("api", "main")),
)


def token(value: str) -> SecretValue:
    return SecretValue(bearer_token=BearerToken(token=value))


@asynccontextmanager
async def brokering(running: Inside, plugins: Path) -> AsyncIterator[Broker]:
    """A second replica's broker, with a plugin process of its own: nothing else of the registry calls plugins yet."""
    settings = tomllib.loads((running.data / "run/registry.toml").read_text())["registry"]
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(connect(settings["credentials"]))
        session = Session(plain, read_token(settings["token_file"]), SystemClock())
        vault = await stack.enter_async_context(connect(settings["credentials"], session.token))
        purse = await stack.enter_async_context(VaultPurse(vault, SystemClock()))
        host = await stack.enter_async_context(hosting(plugins))
        yield Broker(host, FixedConnections(ONE), purse)


AN_HOUR = Duration(seconds=3600)


async def test_a_credential_reaches_its_plugin_is_replaced_there_and_taken_back(
    short_dir: Path, engines: Engines
) -> None:
    make_raw(short_dir)
    plugins = short_dir / "plugins"
    async with AsyncExitStack() as stack, inside(short_dir / "data", engines, plugins) as running:
        admin = await admin_of(running, stack)
        await tenants_pb2_grpc.TenantServiceStub(admin["credentials"]).CreateTenant(
            CreateTenantRequest(tenant_id="acme")
        )
        credentials = credentials_pb2_grpc.CredentialServiceStub(admin["credentials"])
        hook = SecretValue(webhook_secret=WebhookSecret(secret="it is no secret here"))
        for id_, value in (("hook", hook), ("key", token("first"))):
            await credentials.CreateCredential(
                CreateCredentialRequest(parent="tenants/acme", credential_id=id_, value=value)
            )
        wanted = Connection(
            plugin="plugins/raw",
            settings=b"{}",
            credentials=[
                SlotBinding(slot="webhook", credential=f"{NAME}/hook"),
                SlotBinding(slot="api", entry="main", credential=f"{NAME}/key"),
            ],
        )
        await connections_pb2_grpc.ConnectionServiceStub(admin["registry"]).CreateConnection(
            CreateConnectionRequest(parent="tenants/acme", connection_id="raw-1", connection=wanted)
        )
        async with brokering(running, plugins) as broker:
            answer = await broker.calls.unary(ref(ONE), LOOK, look, 30.0)
            assert found(answer.message) == ["api/main/1=first"]
            await credentials.AddCredentialVersion(
                # Without an overlap the old one would be taken back at once, and the new one come with the next call.
                AddCredentialVersionRequest(name=f"{NAME}/key", value=token("second"), overlap=AN_HOUR)
            )
            await until(lambda: [one["version"] for one in calls(short_dir, "Authenticate")] == [1, 2], 30)
            await credentials.RevokeCredential(RevokeCredentialRequest(name=f"{NAME}/key", reason="a test"))
            await until(lambda: [one["version"] for one in calls(short_dir, "withdrawn")][-1:] == [2], 30)
            refusal = await _refusal(broker)
            assert refusal == "CREDENTIAL_REVOKED"


async def _refusal(broker: Broker) -> str:
    try:
        await broker.calls.unary(ref(ONE), LOOK, look, 30.0)
    except CallFailed as failed:
        return failed.failure.reason
    return ""
