"""An app's endpoint: verified with the app's secret, then given to the connection that has the account, or to nobody."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.process.ports import Port
from foundation.process.testing import until
from gateway.request import Request
from gateway.routing import Address, address_of
from tests.gateway.neighbours import SECRET, Edge, edge, github_webhook
from tests.gateway.test_hooks import signed, title
from tieline.common.v1.delivery_pb2 import PRIORITY_LIVE_CRITICAL
from tieline.credentials.v1.tenants_pb2 import Tenant
from tieline.plugin.v1.webhook_pb2 import Answer, Extractor, PriorityOverride, Routing, Webhook
from tieline.registry.v1.endpoints_pb2 import Endpoint

APP = "apps/github"
ACME, OTHER = "tenants/acme/connections/github-main", "tenants/other/connections/theirs"
OURS = b"the app's own secret"


def webhook(*places: str, **more: Any) -> Webhook:
    routing = Routing(
        account_key=[Extractor(json=place) for place in places or ("/installation/id",)], **more
    )
    return github_webhook(
        routing=routing,
        answer=Answer(status=202),
        priority_overrides=[PriorityOverride(event_type="push.now", priority=PRIORITY_LIVE_CRITICAL)],
    )


def app_endpoint(name: str = "app", what: Webhook | None = None, **more: Any) -> Endpoint:
    fields: dict[str, Any] = {"routes": {"1": ACME, "2": OTHER}, "app_owner": "tenants/platform"} | more
    return Endpoint(endpoint=name, app=APP, webhook=what or webhook(), **fields)


def body(account: object, **more: object) -> bytes:
    return json.dumps({"installation": {"id": account}, **more}).encode()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Edge]:
    with Port() as port:
        async with edge(tmp_path, port.number) as running:
            running.leases.secrets |= {APP: [OURS], OTHER: [b"their own"]}
            for tenant in ("other", "platform"):
                running.tenants.states[tenant] = Tenant.STATE_ACTIVE
            running.tenants.changed.set()
            await tell(running, app_endpoint())
            yield running


async def tell(running: Edge, *endpoints: Endpoint) -> None:
    """Known once the last of them is: an endpoint for nothing else follows."""
    running.endpoints.picture |= {endpoint.endpoint: endpoint for endpoint in endpoints}
    marker = f"marker-{len(running.endpoints.picture)}"
    running.endpoints.picture[marker] = app_endpoint(marker)
    running.endpoints.changed.set()

    async def is_known() -> bool:
        return (await running.post(b"{}", {}, marker)).status_code == 401

    await until(is_known, 30)


def ours(raw: bytes, delivery: str = "d-1", **more: str) -> dict[str, str]:
    return signed(raw, delivery, OURS, **more)


async def test_each_account_reaches_its_own_connection_and_repeats_are_recognised(running: Edge) -> None:
    for account, connection in (("1", ACME), (2, OTHER)):
        raw = body(account, action="now")
        answer = await running.post(raw, ours(raw, f"d-{account}"), "app")
        assert answer.status_code == 202, answer.text
        delivery = running.inbox.deliveries[-1]
        assert (delivery.connection, delivery.account_key) == (connection, str(account))
        assert (delivery.body, delivery.app_owner, delivery.verified) == (raw, "", True)
        assert (delivery.event_type, delivery.priority) == ("push.now", PRIORITY_LIVE_CRITICAL)
        again = await running.post(raw, ours(raw, f"d-{account}"), "app")
        assert (again.status_code, again.json()) == (200, answer.json())


async def test_nothing_is_read_before_the_apps_own_secret_fits(running: Edge) -> None:
    raw = body(1)
    for wrong in (SECRET, b"their own", b""):
        answer = await running.post(raw, signed(raw, secret=wrong), "app")
        assert (answer.status_code, title(answer)) == (401, "SIGNATURE_INVALID")
    unknown = await running.post(body(9), signed(body(9), secret=SECRET), "app")
    assert unknown.status_code == 401, "who does not know the secret does not learn which accounts there are"
    assert running.inbox.batches == []


async def test_an_unknown_account_is_refused_kept_for_the_owner_or_discarded_as_is_said(
    running: Edge,
) -> None:
    refuse, keep, drop = Routing.UNMATCHED_REFUSE, Routing.UNMATCHED_DEAD_LETTER, Routing.UNMATCHED_DISCARD
    await tell(
        running,
        app_endpoint("by-default"),
        app_endpoint("refused", unmatched=refuse),
        app_endpoint("kept", unmatched=keep),
        app_endpoint("dropped", webhook(unmatched=drop)),
        app_endpoint("app-wins", webhook(unmatched=drop), unmatched=refuse),
    )
    raw = body(9)
    for name, status in (("by-default", 404), ("refused", 404), ("app-wins", 404), ("dropped", 202)):
        assert (await running.post(raw, ours(raw), name)).status_code == status, name
    assert running.inbox.batches == []
    assert (await running.post(raw, ours(raw), "kept")).status_code == 202
    for nameless in (b"{}", b"[]", b"not json", body(None), body(1.5), body("")):
        assert (await running.post(nameless, ours(nameless, nameless.hex()), "kept")).status_code == 202
    kept = running.inbox.deliveries
    assert {(one.connection, one.app_owner) for one in kept} == {(APP, "tenants/platform")}
    assert [one.account_key for one in kept] == ["9", *[""] * 6]
    metrics = (await running.client.get(f"{running.url}/metrics")).text
    assert f'tieline_deliveries_unmatched_total{{app="{APP}",policy="dead_letter"}} 7.0' in metrics
    assert f'tieline_deliveries_unmatched_total{{app="{APP}",policy="refuse"}} 3.0' in metrics
    assert f'tieline_deliveries_unmatched_total{{app="{APP}",policy="discard"}} 1.0' in metrics


async def test_the_first_place_that_names_an_account_decides(running: Edge) -> None:
    await tell(running, app_endpoint("two", webhook("/team", "/enterprise")))
    for names, connection in (
        ({"team": "1", "enterprise": "2"}, ACME),
        ({"team": "2", "enterprise": "1"}, OTHER),
        ({"enterprise": "2"}, OTHER),
    ):
        raw = json.dumps(names).encode()
        assert (await running.post(raw, ours(raw, str(names)), "two")).status_code == 202
        assert running.inbox.deliveries[-1].connection == connection
    guessed = json.dumps({"team": "9", "enterprise": "1"}).encode()
    assert (await running.post(guessed, ours(guessed), "two")).status_code == 404, "never guessed"


async def test_a_tenant_that_is_suspended_holds_up_nobody_elses_account(running: Edge) -> None:
    running.tenants.states["other"] = Tenant.STATE_SUSPENDED
    running.tenants.changed.set()

    async def is_held() -> bool:
        raw = body(2)
        return (await running.post(raw, ours(raw, "held"), "app")).status_code == 503

    await until(is_held, 30)
    assert (await running.post(body(1), ours(body(1)), "app")).status_code == 202
    running.tenants.states["platform"] = Tenant.STATE_SUSPENDED
    running.tenants.changed.set()

    async def is_closed() -> bool:
        return (await running.post(body(1), ours(body(1)), "app")).status_code == 503

    await until(is_closed, 30)


async def test_where_accounts_sign_the_account_only_chooses_the_secret(running: Edge) -> None:
    await tell(running, app_endpoint("own", webhook(signer=Routing.SIGNER_ACCOUNT)))
    raw = body(2)
    assert (await running.post(raw, signed(raw, secret=b"their own"), "own")).status_code == 202
    assert running.inbox.deliveries[-1].connection == OTHER
    answers = [
        await running.post(one, signed(one, secret=secret), "own")
        for one, secret in ((raw, OURS), (raw, SECRET), (body(9), b"their own"), (b"{}", b"their own"))
    ]
    assert {(answer.status_code, title(answer)) for answer in answers} == {(401, "SIGNATURE_INVALID")}


async def test_a_route_that_is_gone_gets_nothing_any_more(running: Edge) -> None:
    await tell(running, app_endpoint("app", routes={"1": ACME}))
    assert (await running.post(body(2), ours(body(2)), "app")).status_code == 404
    await asyncio.gather(*(running.post(body(1), ours(body(1), f"d-{n}"), "app") for n in range(20)))
    assert {one.connection for one in running.inbox.deliveries} == {ACME}


accounts = st.one_of(st.integers(0, 5).map(str), st.text(min_size=1, max_size=8))
values = st.one_of(accounts, st.integers(), st.none(), st.booleans(), st.just(""), st.floats(), st.just([]))
connections = st.sampled_from([ACME, OTHER, "tenants/third/connections/x"])


@settings(max_examples=300)
@given(st.dictionaries(accounts, connections, max_size=6), st.dictionaries(st.sampled_from("ab"), values))
def test_a_delivery_reaches_whoever_has_the_account_or_nobody(
    routes: Mapping[str, str], found: Mapping[str, Any]
) -> None:
    """Feature: integrations, Property 9 (account keys): it is the account's own connection, or it is nobody's."""
    raw = json.dumps(found).encode()
    request = Request("POST", "https://x/hooks/app", "", [], raw, github_webhook().body)
    endpoint = app_endpoint("app", webhook("/a", "/b"), routes=routes)
    told = [_said(json.loads(raw).get(place)) for place in ("a", "b")]
    account = next((one for one in told if one), "")
    assert address_of(endpoint, request) == Address(routes.get(account, "") if account else "", account)
    direct = Endpoint(endpoint="own", connection=ACME, webhook=webhook("/a", "/b"), routes=routes)
    assert address_of(direct, request) == Address(ACME)


def _said(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value)


def test_signed_is_with_the_apps_secret() -> None:
    assert ours(b"{}")["x-hub-signature-256"] == "sha256=" + hmac.new(OURS, b"{}", hashlib.sha256).hexdigest()
