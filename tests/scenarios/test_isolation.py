"""Tenant A's tokens reach nothing of tenant B: every method that is served, every role; and the rows beneath.

Generated from the descriptors of what the running services really serve, so a new method is in here the
moment it is registered.
"""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncpg
import grpc.aio
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from foundation.errors import Code, Problem
from foundation.identity import describe_method
from foundation.identity.session import Session
from foundation.rpc import connect
from tests.scenarios.path import push, receiving
from tests.scenarios.suite import Standing
from tieline.common.v1 import options_pb2 as contract
from tieline.credentials.v1 import tokens_pb2_grpc
from tieline.credentials.v1.tokens_pb2 import ApiToken, CreateApiTokenRequest

ROLES = ("TENANT_ADMIN", "OPERATOR", "VIEWER", "INGEST")
FOREIGN = {Code.TENANT_FOREIGN, Code.ROLE_MISSING, Code.CALLER_KIND_REFUSED}


@dataclass(frozen=True)
class Target:
    service: str
    channel: grpc.aio.Channel


async def served_methods(channel: grpc.aio.Channel) -> list[MethodDescriptor]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", channel))
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names: list[str] = []
    async for answer in call:
        names = [service.name for service in answer.list_services_response.service]
        break
    call.cancel()
    pool = descriptor_pool.Default()
    ours = [name for name in names if name.startswith("tieline.")]
    return [method for name in ours for method in pool.FindServiceByName(name).methods]


def request_for(method: MethodDescriptor, tenant: str) -> Any:
    """The smallest request that names this tenant where the rule looks for it."""
    request = message_factory.GetMessageClass(method.input_type)()
    target: Any = request
    *above, last = describe_method(method).tenant_path or ("",)
    for name in above:
        field = target.DESCRIPTOR.fields_by_name[name]
        target = getattr(target, name).add() if field.is_repeated else getattr(target, name)
    if last:
        value = f"tenants/{tenant}"
        if target.DESCRIPTOR.fields_by_name[last].is_repeated:
            getattr(target, last).append(value)
        else:
            setattr(target, last, value)
    return request


async def ask(channel: grpc.aio.Channel, method: MethodDescriptor, request: Any) -> Code | None:
    """The problem's code, or None for a yes."""
    described = describe_method(method)
    answer = message_factory.GetMessageClass(method.output_type)
    options: dict[str, Any] = {
        "request_serializer": type(request).SerializeToString,
        "response_deserializer": answer.FromString,
    }
    try:
        if described.streams:
            stream = channel.unary_stream(described.path, **options)(request, timeout=30)
            async for _ in stream:
                break
        else:
            await channel.unary_unary(described.path, **options)(request, timeout=30)
    except Problem as problem:
        return problem.code
    return None


@pytest.fixture
async def stack(shared: Standing, tenant: str) -> AsyncIterator[AsyncExitStack]:
    """For channels; there is the tenant, and another one beside it."""
    async with AsyncExitStack() as stack:
        for one in (tenant, other(tenant)):
            receiver = await stack.enter_async_context(receiving(shared, one))
            assert (await receiver.send(push(1), "d-1")).status_code == 202
            await receiver.stored(1)
        yield stack


def other(tenant: str) -> str:
    return f"{tenant}-other"


async def _token(running: Standing, stack: AsyncExitStack, tenant: str, role: str) -> str:
    api_token = Path(running.endpoints["admin_token_file"]).read_text().strip()
    plain = await stack.enter_async_context(connect(running.endpoints["credentials"]))
    admin = await stack.enter_async_context(
        connect(running.endpoints["credentials"], Session(plain, api_token).token)
    )
    wanted = ApiToken(roles=[contract.Role.Value(f"ROLE_{role}")])
    made = await tokens_pb2_grpc.TokenServiceStub(admin).CreateApiToken(
        CreateApiTokenRequest(parent=f"tenants/{tenant}", api_token=wanted)
    )
    return made.secret


async def test_no_method_gives_a_foreign_tenant_anything(
    shared: Standing, tenant: str, stack: AsyncExitStack
) -> None:
    """Feature: integrations, Property 2 (tenant isolation over the whole API)."""
    asked = 0
    for role in ROLES:
        token = await _token(shared, stack, tenant, role)
        plain = await stack.enter_async_context(connect(shared.endpoints["credentials"]))
        for service in ("credentials", "registry", "mapper"):
            channel = await stack.enter_async_context(
                connect(shared.endpoints[service], Session(plain, token).token)
            )
            for method in await served_methods(channel):
                rule = describe_method(method)
                if rule.scope not in (contract.SCOPE_TENANT, contract.SCOPE_PLATFORM):
                    continue
                code = await ask(channel, method, request_for(method, other(tenant)))
                assert code in FOREIGN, f"{role} at {rule.path}: {code}"
                asked += 1
    assert asked > 4 * 60


async def test_without_a_token_there_is_nothing_at_all(
    shared: Standing, tenant: str, stack: AsyncExitStack
) -> None:
    for service in ("credentials", "registry", "mapper"):
        channel = await stack.enter_async_context(connect(shared.endpoints[service]))
        for method in await served_methods(channel):
            if describe_method(method).scope != contract.SCOPE_PUBLIC:
                assert await ask(channel, method, request_for(method, tenant)) is Code.TOKEN_MISSING


def logins(running: Standing) -> Iterator[tuple[str, str]]:
    """Where each service logs in, as its own settings file says."""
    for service in ("credentials", "registry", "mapper"):
        settings = tomllib.loads((running.data / f"run/{service}.toml").read_text())[service]
        yield service, settings["database_url"]


@pytest.mark.usefixtures("stack")
async def test_raw_sql_with_a_services_role_sees_only_the_tenants_it_names(
    shared: Standing, tenant: str
) -> None:
    looked = 0
    for schema, url in logins(shared):
        connection = await asyncpg.connect(url)
        try:
            tables = await connection.fetch(
                "select table_name from information_schema.columns "
                "where table_schema = $1 and column_name = 'tenant'",
                schema,
            )
            for (table,) in tables:
                for tenants, seen in ((None, set()), ("{}", set()), (f"{{{tenant}}}", {tenant})):
                    async with connection.transaction():
                        if tenants is not None:
                            await connection.execute(
                                "select set_config('tieline.tenants', $1, true)", tenants
                            )
                        rows = await connection.fetch(f'select distinct tenant from {schema}."{table}"')  # noqa: S608
                    assert {row["tenant"] for row in rows} <= seen, table
                    looked += 1
            others = {"credentials", "registry", "mapper"} - {schema}
            for other in others:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"select * from {other}.schema_version")  # noqa: S608
        finally:
            await connection.close()
    assert looked > 20
