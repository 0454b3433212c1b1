"""A credential that does not work pauses exactly the connections that use it, and they resume with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.process.testing import until
from tests.services.registry.conftest import ADMIN, Running
from tests.services.registry.plugins import make_plugin
from tieline.credentials.v1.credentials_pb2 import Credential
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import (
    Connection,
    CreateConnectionRequest,
    GetConnectionRequest,
    SlotBinding,
)

ACTIVE, SUSPENDED = Connection.STATE_ACTIVE, Connection.STATE_SUSPENDED
HOOK, SPARE = "tenants/acme/credentials/hook", "tenants/acme/credentials/spare"


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Path:
    return make_plugin(tmp_path / "plugins", "one")


class Connections:
    def __init__(self, running: Running) -> None:
        self._running = running

    async def make(self, name: str, credential: str) -> None:
        async with self._running.as_(ADMIN) as channel:
            stub = connections_pb2_grpc.ConnectionServiceStub(channel)
            binding = SlotBinding(slot="webhook", credential=credential)
            wanted = Connection(plugin="plugins/one", settings=b"{}", credentials=[binding])
            request = CreateConnectionRequest(parent="tenants/acme", connection_id=name, connection=wanted)
            await stub.CreateConnection(request)

    async def get(self, name: str) -> Connection:
        async with self._running.as_(ADMIN) as channel:
            stub = connections_pb2_grpc.ConnectionServiceStub(channel)
            return await stub.GetConnection(GetConnectionRequest(name=f"tenants/acme/connections/{name}"))

    async def become(self, name: str, state: Connection.State.ValueType) -> Connection:
        async def is_so() -> bool:
            return (await self.get(name)).state == state

        await until(is_so, 30)
        return await self.get(name)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Credential.STATE_REFUSED, "refused by its provider"),
        (Credential.STATE_EXPIRED, "has expired"),
        (Credential.STATE_REAUTHORISATION_REQUIRED, "consent again"),
        (Credential.STATE_REVOKED, "was revoked"),
    ],
)
async def test_only_who_uses_it_is_paused_and_until_it_works(
    registry: Running, state: Credential.State.ValueType, words: str
) -> None:
    registry.vault.credentials.add(SPARE)
    connections = Connections(registry)
    await connections.make("main", HOOK)
    await connections.make("other", SPARE)
    registry.vault.tell(hook=Credential.STATE_VALID, spare=Credential.STATE_UNCHECKED)
    await connections.become("main", ACTIVE)
    registry.vault.tell(hook=state, spare=Credential.STATE_EXPIRING)
    paused = await connections.become("main", SUSPENDED)
    assert words in paused.failure.message
    assert HOOK in paused.failure.message
    assert (await connections.get("other")).state == ACTIVE
    registry.vault.tell(hook=Credential.STATE_UNCHECKED, spare=Credential.STATE_EXPIRING)
    again = await connections.become("main", ACTIVE)
    assert not again.HasField("failure")


async def test_a_connection_made_of_a_broken_credential_is_paused_too(registry: Running) -> None:
    registry.vault.tell(hook=Credential.STATE_REFUSED)
    connections = Connections(registry)
    await connections.make("late", HOOK)
    await connections.become("late", SUSPENDED)


async def test_a_credential_that_is_gone_pauses_as_well(registry: Running) -> None:
    connections = Connections(registry)
    await connections.make("main", HOOK)
    await connections.become("main", ACTIVE)
    await registry.sql("update registry.connections set update_time = now() - interval '1 minute'")
    registry.vault.tell()
    # The registry reads connections anew when one has changed.
    await registry.sql("update registry.picture set generation = generation + 1")
    assert "is gone" in (await connections.become("main", SUSPENDED)).failure.message
