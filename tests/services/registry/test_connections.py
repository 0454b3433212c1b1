"""Connections through the registry's own API: made once, applied by a real plugin, told to the gateway, walled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Code, Problem
from foundation.process.testing import until
from foundation.store.schemas import REGISTRY
from foundation.store.walls import gaps
from tests.services.registry.conftest import (
    ADMIN,
    FOREIGN,
    GATEWAY,
    MAPPER,
    OPERATOR,
    PASSWORDS,
    VIEWER,
    Running,
)
from tests.services.registry.plugins import make_plugin
from tieline.common.v1.credential_pb2 import CREDENTIAL_KIND_API_KEY, CREDENTIAL_KIND_BEARER_TOKEN
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL, PURPOSE_WEBHOOK_VERIFY
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    catalogue_pb2,
    catalogue_pb2_grpc,
    connections_pb2_grpc,
    endpoints_pb2_grpc,
)
from tieline.registry.v1.connections_pb2 import (
    AccountKey,
    Connection,
    CreateConnectionRequest,
    GetConnectionRequest,
    ListConnectionsRequest,
    SlotBinding,
)
from tieline.registry.v1.endpoints_pb2 import Endpoint, WatchEndpointsRequest

API_SLOT = """
[[credential_slots]]
name = "api"

[[credential_slots.choices]]
kind = "bearer_token"
fields = ["token"]
account_setting = "/word"

[[credential_slots.choices]]
kind = "github_app"
fields = ["token"]
"""
HOOK = SlotBinding(slot="webhook", credential="tenants/acme/credentials/hook")


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Path:
    return make_plugin(tmp_path / "plugins", "one", rest=API_SLOT)


def wish(settings: bytes = b"{}", **more: Any) -> Connection:
    fields: dict[str, Any] = {"plugin": "plugins/one", "credentials": [HOOK]} | more
    return Connection(settings=settings, **fields)


def creation(id_: str = "main", wanted: Connection | None = None, **more: Any) -> CreateConnectionRequest:
    return CreateConnectionRequest(
        parent="tenants/acme", connection_id=id_, connection=wanted or wish(), **more
    )


async def applied(stub: Any, request: CreateConnectionRequest) -> Connection:
    """Made, and as it is once its plugin has taken it, however busy this machine is."""
    made: Connection = await stub.CreateConnection(request)

    async def taken() -> bool:
        nonlocal made
        made = await stub.GetConnection(GetConnectionRequest(name=made.name))
        return made.application == Connection.APPLICATION_APPLIED

    await until(taken, 30)
    return made


@asynccontextmanager
async def connections(registry: Running, principal: Any = ADMIN) -> AsyncIterator[Any]:
    async with registry.as_(principal) as channel:
        yield connections_pb2_grpc.ConnectionServiceStub(channel)


async def test_a_connection_is_applied_granted_and_has_an_address(registry: Running) -> None:
    async with connections(registry) as stub:
        made = await applied(stub, creation(wanted=wish(b' {"word": "x"} ', title="Main")))
        read = await stub.GetConnection(GetConnectionRequest(name=made.name))
    assert read == made
    assert made.name == "tenants/acme/connections/main"
    assert (made.state, made.application) == (Connection.STATE_ACTIVE, Connection.APPLICATION_APPLIED)
    assert (made.revision, made.applied_revision, made.resolved_version) == (1, 1, "1.0.0")
    assert made.settings == b'{"word":"x"}'
    url = made.webhook_urls["events"]
    assert url.startswith("https://hooks.acme.example/hooks/")
    assert len(url.rpartition("/")[2]) == 26
    ((who, grant),) = registry.vault.granted.values()
    assert registry.audit.said[0] == ("connection.create", made.name, "INTENT")
    assert who == "users/ada", "made with the caller's right, not ours"
    assert (grant.service, grant.connection, grant.slot) == ("gateway", made.name, "webhook")
    assert list(grant.fields) == ["secret"]


async def test_the_same_again_is_the_same_and_anything_else_is_refused(registry: Running) -> None:
    async with connections(registry) as stub:
        first = await applied(stub, creation(request_id="r1"))
        assert await stub.CreateConnection(creation(request_id="r1")) == first
        assert await stub.CreateConnection(creation(request_id="r2")) == first
        for other in (creation(wanted=wish(b'{"word": "y"}')), creation("second", request_id="r1")):
            with pytest.raises(Problem) as refused:
                await stub.CreateConnection(other)
            assert refused.value.code is Code.ALREADY_EXISTS
        racing = await asyncio.gather(*(stub.CreateConnection(creation("raced")) for _ in range(8)))
    assert len({one.webhook_urls["events"] for one in racing}) == 1
    assert len(await registry.sql("select from registry.connections")) == 2


async def test_what_cannot_be_is_refused_and_leaves_nothing(registry: Running) -> None:
    refusals = [
        (wish(plugin="plugins/none"), "there is no plugin 'plugins/none'"),
        (wish(b"[]"), "not a JSON object"),
        (wish(b'{"word": 1, "wrod": "hunter2"}'), "/word"),
        (wish(b'{"word": "forbidden"}'), "that word is forbidden"),
        (wish(credentials=[]), "the slot webhook needs a credential"),
        (wish(credentials=[HOOK, HOOK]), "filled twice"),
        (wish(credentials=[SlotBinding(slot="x", credential=HOOK.credential)]), "no slot 'x'"),
        (wish(credentials=[SlotBinding(slot="webhook", entry="e", credential=HOOK.credential)]), "one entry"),
        (wish(credentials=[SlotBinding(slot="webhook", credential="tenants/other/credentials/a")]), "another tenant"),
        (wish(webhooks=["nope"]), "no webhook 'nope'"),
        (wish(app="apps/x"), "there is no 'apps/x'"),
        (wish(account_keys=[AccountKey(key="1")]), "name the app"),
        (wish(version_range=">=2"), "no version that may be chosen fits; there is 1.0.0"),
        (wish(version_range="the latest"), "'the latest' is no part of a range"),
    ]  # fmt: skip
    for wanted, complaint in refusals:
        async with connections(registry) as stub:
            with pytest.raises(Problem) as refused:
                await stub.CreateConnection(creation(wanted=wanted))
        assert refused.value.code is Code.INVALID_ARGUMENT, complaint
        assert complaint in refused.value.text
        assert "hunter2" not in refused.value.text
        assert not registry.vault.granted
        assert not await registry.sql("select from registry.connections")


async def test_what_a_plugin_calls_with_is_granted_to_it_for_its_account_and_its_fields(
    registry: Running,
) -> None:
    key, token = "tenants/acme/credentials/key", "tenants/acme/credentials/token"
    registry.vault.credentials |= {key, token}
    registry.vault.kinds = {key: CREDENTIAL_KIND_API_KEY, token: CREDENTIAL_KIND_BEARER_TOKEN}
    async with connections(registry) as stub:
        for id_, credential in (("right", token), ("wrong", key)):
            both = [HOOK, SlotBinding(slot="api", credential=credential)]
            request = creation(id_, wish(b'{"word": "acme"}', credentials=both))
            if id_ == "right":
                await applied(stub, request)
                continue
            with pytest.raises(Problem) as refused:
                await stub.CreateConnection(request)
            assert "takes bearer_token or github_app, and it is api_key" in refused.value.text
    granted = {
        grant.slot: grant for _, grant in registry.vault.granted.values() if "right" in grant.connection
    }
    assert (granted["webhook"].service, granted["webhook"].purpose) == ("gateway", PURPOSE_WEBHOOK_VERIFY)
    api = granted["api"]
    assert (api.plugin, api.purpose, list(api.fields), api.account) == (
        "one",
        PURPOSE_CALL,
        ["token"],
        "acme",
    )


async def test_a_credential_that_is_not_there_or_not_theirs_to_give_stops_it(registry: Running) -> None:
    missing = wish(credentials=[SlotBinding(slot="webhook", credential="tenants/acme/credentials/none")])
    async with connections(registry) as stub:
        with pytest.raises(Problem, match="no credential"):
            await stub.CreateConnection(creation(wanted=missing))
    async with connections(registry, OPERATOR) as stub:
        with pytest.raises(Problem) as refused:
            await stub.CreateConnection(creation())
        assert refused.value.code is Code.ROLE_MISSING, "an operator may connect, but not grant"
        checked = await stub.CreateConnection(creation(validate_only=True))
        assert checked.application == Connection.APPLICATION_PENDING
    assert not await registry.sql("select from registry.connections")


async def test_tenants_see_and_change_their_own(registry: Running) -> None:
    async with connections(registry) as stub:
        made = await stub.CreateConnection(creation())
    for principal, code in ((FOREIGN, Code.TENANT_FOREIGN), (VIEWER, Code.ROLE_MISSING)):
        async with connections(registry, principal) as stub:
            with pytest.raises(Problem) as refused:
                await stub.CreateConnection(creation("two"))
            assert refused.value.code is code
    async with connections(registry, VIEWER) as stub:
        assert (await stub.GetConnection(GetConnectionRequest(name=made.name))).name == made.name
    async with connections(registry, FOREIGN) as stub:
        assert not (await stub.ListConnections(ListConnectionsRequest(parent="tenants/other"))).connections
    assert await gaps(registry.admin, [REGISTRY]) == []
    service = registry.admin.login(REGISTRY.service, PASSWORDS[REGISTRY.service])
    stolen = Running(
        registry.settings, registry.vault, registry.audit, registry.mapper, service, registry.stopping
    )
    for table in ("connections", "connection_revisions", "endpoints"):
        assert not await stolen.sql(f"select from registry.{table}")


async def test_lists_come_in_pages(registry: Running) -> None:
    async with connections(registry) as stub:
        await asyncio.gather(*(stub.CreateConnection(creation(f"c{number}")) for number in range(5)))
        seen, token = [], ""
        while True:
            request = ListConnectionsRequest(parent="tenants/acme", page_size=2, page_token=token)
            page = await stub.ListConnections(request)
            seen += [one.name.rpartition("/")[2] for one in page.connections]
            token = page.next_page_token
            if not token:
                break
        assert seen == ["c0", "c1", "c2", "c3", "c4"]
        other = ListConnectionsRequest(parent="tenants/acme", plugin="plugins/github")
        assert not (await stub.ListConnections(other)).connections


async def test_the_gateway_is_told_everything_at_once_and_every_change(registry: Running) -> None:
    pictures: list[list[Endpoint]] = []

    async def watch() -> None:
        async with registry.as_(GATEWAY) as channel:
            stub: Any = endpoints_pb2_grpc.EndpointServiceStub(channel)
            whole: list[Endpoint] = []
            async for part in stub.WatchEndpoints(WatchEndpointsRequest()):
                whole += part.endpoints
                if not part.more:
                    pictures.append(whole)
                    whole = []

    watching = asyncio.create_task(watch())
    try:
        await until(lambda: pictures == [[]])
        async with connections(registry) as stub:
            made = await applied(stub, creation())
        await until(lambda: pictures[-1], 30)
        (endpoint,) = pictures[-1]
        assert made.webhook_urls["events"].endswith(f"/hooks/{endpoint.endpoint}")
        assert (endpoint.connection, endpoint.plugin) == (made.name, "one")
        assert endpoint.webhook.signature.hmac.signature.header == "x-signature"
        # As another replica would: only the database knows of it.
        await registry.sql("update registry.picture set generation = generation + 1")
        count = len(pictures)
        await until(lambda: len(pictures) > count, 30)
        registry.stopping.set()
        await asyncio.wait_for(watching, 30)
    finally:
        watching.cancel()


async def test_the_mapper_transforms_by_the_connections_name(registry: Running) -> None:
    async with connections(registry) as stub:
        made = await applied(stub, creation(wanted=wish(b'{"word": "!"}')))
    group = broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection=made.name),
        inputs=[TransformInput(input_id="1", webhook="events", payload=b'{"say": "hello"}')],
    )
    unknown = broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection="tenants/acme/connections/none")
    )
    async with registry.as_(MAPPER) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        answer = await stub.TransformData(broker_pb2.TransformDataRequest(groups=[group, unknown]))
    known, none = answer.results
    assert known.outcomes[0].events.drafts[0].title == "hello!"
    assert none.failure.kind == FailureKind.FAILURE_KIND_NOT_FOUND
    async with registry.as_(ADMIN) as channel:
        with pytest.raises(Problem) as refused:
            await broker_pb2_grpc.BrokerServiceStub(channel).TransformData(broker_pb2.TransformDataRequest())
    assert refused.value.code is Code.CALLER_KIND_REFUSED


async def test_the_catalogue_tells_what_there_is_and_what_was_refused(registry: Running) -> None:
    async with registry.as_(VIEWER) as channel:
        stub: Any = catalogue_pb2_grpc.CatalogueServiceStub(channel)
        first = await stub.ListPlugins(catalogue_pb2.ListPluginsRequest(page_size=1))
        rest = await stub.ListPlugins(catalogue_pb2.ListPluginsRequest(page_token=first.next_page_token))
        names = [one.name for one in (*first.plugins, *rest.plugins)]
        assert names == ["plugins/github", "plugins/one"]
        one = await stub.GetPluginVersion(
            catalogue_pb2.GetPluginVersionRequest(name="plugins/one/versions/1.0.0")
        )
        assert one.manifest.webhooks[0].name == "events"
        with pytest.raises(Problem, match="no plugin two"):
            await stub.GetPlugin(catalogue_pb2.GetPluginRequest(name="plugins/two"))
