"""Default deny: what has no rule is not served, who has no right is not heard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role, authorise, describe_method
from foundation.rpc import check_health, connect
from foundation.rpc.call import ON_BEHALF_OF, author
from foundation.telemetry import Metrics
from tests.foundation.rpc import toy
from tests.foundation.rpc.conftest import (
    PLATFORM_ADMIN,
    VIEWER_OF_ACME,
    Running,
    make_server,
    token_for,
)
from tieline.common.v1 import options_pb2 as contract

VIEWER = contract.ROLE_VIEWER
BROKEN_RULES = {
    "NoScope": toy.method("Do", 0, roles=(VIEWER,), field="tenant"),
    "NoRetryClass": toy.method("Do", contract.SCOPE_PUBLIC, retry=0),
    "NoRoles": toy.method("Do", contract.SCOPE_TENANT, field="tenant"),
    "NoTenantField": toy.method("Do", contract.SCOPE_TENANT, roles=(VIEWER,)),
    "PublicWithRoles": toy.method("Do", contract.SCOPE_PUBLIC, roles=(VIEWER,)),
    "PlatformWithTenant": toy.method("Do", contract.SCOPE_PLATFORM, roles=(VIEWER,), field="tenant"),
    "UnknownField": toy.method("Do", contract.SCOPE_TENANT, roles=(VIEWER,), field="tenent"),
    "FieldIsNoText": toy.method("Do", contract.SCOPE_TENANT, roles=(VIEWER,), field="parts"),
    "StreamsIn": toy.method("Do", contract.SCOPE_PUBLIC, client_streaming=True),
}


async def test_a_method_without_a_rule_cannot_be_served() -> None:
    with pytest.raises(ValueError, match=r"BareService/Anything cannot be served"):
        make_server(Metrics("toy")).add(toy.add_named(toy.BARE), toy.Toy())


@pytest.mark.parametrize("name", BROKEN_RULES)
async def test_a_rule_that_does_not_hold_together_cannot_be_served(name: str) -> None:
    service = toy.define_service(name, BROKEN_RULES[name])
    with pytest.raises(ValueError, match=f"{name}/Do cannot be served"):
        make_server(Metrics("toy")).add(toy.add_named(service), toy.Toy())


def test_a_rule_for_services_is_closed_to_people_whatever_their_role() -> None:
    rpc = toy.method("Do", contract.SCOPE_PLATFORM, roles=(contract.ROLE_PLATFORM_ADMIN,))
    rpc.options.Extensions[contract.rule].callers.append(contract.PRINCIPAL_KIND_SERVICE)
    service = toy.define_service("ForServices", rpc)
    method = describe_method(descriptor_pool.Default().FindServiceByName(service).methods_by_name["Do"])
    authorise(method, replace(PLATFORM_ADMIN, kind=Kind.SERVICE), toy.Question())
    with pytest.raises(Problem) as refused:
        authorise(method, PLATFORM_ADMIN, toy.Question())
    assert refused.value.code is Code.CALLER_KIND_REFUSED


async def _refusal(running: Running, principal: Principal | None, name: str, **fields: object) -> Code:
    async with running.as_(principal) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, name)(toy.Question(**fields))
    assert name not in running.servicer.calls
    return refused.value.code


async def test_nobody_in_particular_gets_nothing(running: Running) -> None:
    assert await _refusal(running, None, "Read", tenant="tenants/acme") is Code.TOKEN_MISSING
    assert await _refusal(running, None, "Rule") is Code.TOKEN_MISSING
    assert await _refusal(running, None, "Known") is Code.TOKEN_MISSING


async def test_some_methods_are_for_whoever_has_any_token(running: Running) -> None:
    nobody_much = Principal(Kind.USER, "ada")
    async with running.as_(nobody_much) as channel:
        await toy.unary_stub(channel, "Known")(toy.Question())
    assert await _refusal(running, nobody_much, "Rule") is Code.ROLE_MISSING


async def test_a_viewer_reads_its_own_tenant_and_what_lies_below(running: Running) -> None:
    async with running.as_(VIEWER_OF_ACME) as channel:
        for tenant in ("tenants/acme", "tenants/acme/connections/main"):
            answer = await toy.unary_stub(channel, "Read")(toy.Question(tenant=tenant))
            assert answer.text == f"Read {tenant}"


async def test_a_foreign_tenant_is_refused(running: Running) -> None:
    assert await _refusal(running, VIEWER_OF_ACME, "Read", tenant="tenants/other") is Code.TENANT_FOREIGN


async def test_one_foreign_tenant_among_several_refuses_the_whole_request(running: Running) -> None:
    parts = [toy.Question(tenant="tenants/acme"), toy.Question(tenant="tenants/other")]
    assert await _refusal(running, VIEWER_OF_ACME, "ReadMany", parts=parts) is Code.TENANT_FOREIGN


@pytest.mark.parametrize(
    "tenant", ["", "acme", "tenants/", "tenants//connections/x", "/tenants/acme", "tenant/acme"]
)
async def test_a_request_that_names_no_tenant_is_refused(running: Running, tenant: str) -> None:
    assert await _refusal(running, VIEWER_OF_ACME, "Read", tenant=tenant) is Code.TENANT_UNNAMED


async def test_an_empty_list_of_tenants_is_no_way_around(running: Running) -> None:
    assert await _refusal(running, VIEWER_OF_ACME, "ReadMany") is Code.TENANT_UNNAMED


async def test_a_role_is_needed_and_other_roles_do_not_contain_it(running: Running) -> None:
    ingest = Principal(Kind.SERVICE, "edge", tenant_roles={"acme": frozenset({Role.INGEST})})
    assert await _refusal(running, ingest, "Read", tenant="tenants/acme") is Code.ROLE_MISSING
    assert await _refusal(running, VIEWER_OF_ACME, "Rule") is Code.ROLE_MISSING
    assert await _refusal(running, PLATFORM_ADMIN, "Read", tenant="tenants/acme") is Code.ROLE_MISSING


async def test_streams_obey_the_same_rules(running: Running) -> None:
    async with running.as_(VIEWER_OF_ACME) as channel:
        with pytest.raises(Problem) as refused:
            async for _ in toy.stream_stub(channel, "Watch")(toy.Question(tenant="tenants/other")):
                pass
    assert refused.value.code is Code.TENANT_FOREIGN
    assert running.servicer.calls == []


async def test_health_is_for_everybody_and_follows_the_state(running: Running) -> None:
    async with running.as_(None) as channel:
        await running.server.set_ready(ready=True)
        await check_health(channel, "toy")
        await running.server.set_ready(ready=False)
        with pytest.raises(Problem, match="toy cannot be reached: it is not ready"):
            await check_health(channel, "toy")


async def test_what_cannot_be_reached_is_not_healthy(short_dir: Path) -> None:
    async with connect(f"unix:{short_dir}/nobody") as channel:
        with pytest.raises(Problem, match="toy cannot be reached"):
            await check_health(channel, "toy")


REGISTRY = Principal(Kind.SERVICE, "services/registry", frozenset({Role.SERVICE, Role.PLATFORM_ADMIN}))
"""With more rights of its own than its caller has, so that they could leak."""


def handing_on(principal: Principal) -> tuple[tuple[str, str], ...]:
    return ((ON_BEHALF_OF, f"Bearer {token_for(principal)}"),)


async def test_a_process_acts_for_its_caller_with_the_callers_right_alone(running: Running) -> None:
    authors: list[str] = []

    async def note(*_: Any) -> Any:
        authors.append(author())
        return toy.Answer()

    running.servicer.answers["Read"] = note
    async with running.as_(REGISTRY) as channel:
        metadata = handing_on(VIEWER_OF_ACME)
        await toy.unary_stub(channel, "Read")(toy.Question(tenant="tenants/acme"), metadata=metadata)
        for name, fields in (("Read", {"tenant": "tenants/other"}), ("Rule", {})):
            with pytest.raises(Problem) as refused:
                await toy.unary_stub(channel, name)(toy.Question(**fields), metadata=metadata)
            assert refused.value.code in (Code.TENANT_FOREIGN, Code.ROLE_MISSING)
    assert authors == ["ada through services/registry"]
    assert running.servicer.calls == ["Read"]


async def test_only_the_platforms_own_processes_act_for_others(running: Running) -> None:
    for principal in (VIEWER_OF_ACME, PLATFORM_ADMIN, None):
        async with running.as_(principal) as channel:
            call = toy.unary_stub(channel, "Rule")
            with pytest.raises(Problem) as refused:
                await call(toy.Question(), metadata=handing_on(PLATFORM_ADMIN))
            assert refused.value.code is Code.TOKEN_INVALID


async def test_what_is_handed_on_must_be_a_token(running: Running) -> None:
    async with running.as_(REGISTRY) as channel:
        for text in ("", "Bearer ", "Bearer x.y.z", token_for(VIEWER_OF_ACME)):
            with pytest.raises(Problem) as refused:
                await toy.unary_stub(channel, "Rule")(toy.Question(), metadata=((ON_BEHALF_OF, text),))
            assert refused.value.code is Code.TOKEN_INVALID
