"""`POST /hooks/{endpoint}` from signature to answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from foundation.errors import Code, Problem
from foundation.process.ports import Port
from tests.gateway.neighbours import CONNECTION, SECRET, Edge, edge, github_webhook
from tieline.common.v1.delivery_pb2 import PRIORITY_LIVE_CRITICAL
from tieline.common.v1.failure_pb2 import FAILURE_KIND_NOT_FOUND, Failure
from tieline.credentials.v1.tenants_pb2 import Tenant
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, DeliveryInput
from tieline.plugin.v1.webhook_pb2 import PriorityOverride, Signature
from tieline.registry.v1.endpoints_pb2 import Endpoint


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Edge]:
    with Port() as port:
        async with edge(tmp_path, port.number) as running:
            yield running


def signed(body: bytes, delivery: str = "d-1", secret: bytes = SECRET, **more: str) -> dict[str, str]:
    signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return {
        "x-hub-signature-256": f"sha256={signature}",
        "x-github-delivery": delivery,
        "x-github-event": "push",
        "content-type": "application/json",
    } | more


def title(answer: httpx.Response) -> str:
    found: str = answer.json()["title"]
    return found


async def test_a_signed_delivery_reaches_the_inbox_as_it_came(running: Edge) -> None:
    body = b'{ "action" : "opened",\n "x": "\xc3\xa9" }'
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = signed(body, authorization="Bearer hunter2", traceparent=trace, cookie="hunter2", x_extra="1")
    answer = await running.post(body, headers)
    assert answer.status_code == 202
    [delivery] = running.inbox.deliveries
    assert answer.json() == {"delivery_id": delivery.delivery_id}
    assert delivery.body == body
    assert delivery.connection == CONNECTION
    assert (delivery.webhook, delivery.event_type) == ("events", "push.opened")
    assert (delivery.provider_delivery_id, delivery.content_type) == ("d-1", "application/json")
    assert delivery.verified
    assert delivery.secret_version == 1
    assert delivery.traceparent.split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    names = {header.name for header in delivery.headers}
    assert {"x-github-event", "x_extra"} <= names
    assert names.isdisjoint({"authorization", "cookie", "x-hub-signature-256"})
    assert b"hunter2" not in delivery.SerializeToString()


async def test_the_same_delivery_again_is_told_the_first_ones_id(running: Edge) -> None:
    first = await running.post(b"{}", signed(b"{}"))
    again = await running.post(b"{}", signed(b"{}"))
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json() == again.json()


async def test_without_an_id_of_the_provider_the_body_is_its_own(running: Edge) -> None:
    headers = signed(b"{}")
    del headers["x-github-delivery"]
    await running.post(b"{}", headers)
    assert running.inbox.deliveries[0].provider_delivery_id == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256="},
        {"x-hub-signature-256": "sha256=zz"},
        {"x-hub-signature-256": "sha1=" + hmac.new(SECRET, b"{}", hashlib.sha1).hexdigest()},
        {"x-hub-signature-256": hmac.new(SECRET, b"{}", hashlib.sha256).hexdigest()},
        {"x-hub-signature-256": "sha256=" + hmac.new(b"other", b"{}", hashlib.sha256).hexdigest()},
        {"x-hub-signature-256": "sha256=" + hmac.new(SECRET, b"{ }", hashlib.sha256).hexdigest()},
        {"x-hub-signature-256": "sha256=" + hmac.new(b"", b"{}", hashlib.sha256).hexdigest()},
    ],
)
async def test_what_is_not_signed_with_the_secret_is_refused(running: Edge, changed: dict[str, str]) -> None:
    answer = await running.post(b"{}", signed(b"{}") | changed)
    assert (answer.status_code, title(answer)) == (401, "SIGNATURE_INVALID")
    assert running.inbox.batches == []


async def test_every_active_secret_fits(running: Edge) -> None:
    running.leases.secrets[CONNECTION] = [b"the new secret", SECRET]
    for number, secret in enumerate((b"the new secret", SECRET)):
        assert (await running.post(b"{}", signed(b"{}", f"d-{number}", secret))).status_code == 202
    assert [delivery.secret_version for delivery in running.inbox.deliveries] == [2, 1]


async def test_who_has_no_secret_is_closed(running: Edge) -> None:
    running.leases.secrets.clear()
    assert (await running.post(b"{}", signed(b"{}"))).status_code == 401
    assert (await running.post(b"{}", signed(b"{}", secret=b""))).status_code == 401
    assert running.leases.asked == 1, "a flood of refusals must not become a flood of questions"


async def test_an_unknown_scheme_is_closed(running: Edge) -> None:
    for scheme in (
        Signature(),
        Signature(unsigned=Signature.Unsigned()),
        Signature(custom=Signature.Custom()),
    ):
        webhook = github_webhook()
        webhook.signature.CopyFrom(scheme)
        running.endpoints.picture["hook"] = Endpoint(endpoint="hook", connection=CONNECTION, webhook=webhook)
        running.endpoints.changed.set()
        answer = await running.post(b"{}", {})
        assert answer.status_code == 401


async def test_endpoints_come_and_go_while_it_runs(running: Edge) -> None:
    assert (await running.post(b"{}", signed(b"{}"), "other")).status_code == 404
    running.endpoints.picture["other"] = Endpoint(
        endpoint="other", connection=CONNECTION, webhook=github_webhook()
    )
    running.endpoints.changed.set()
    await _until_status(running, "other", 202)
    running.endpoints.picture["other"].suspended = True
    running.endpoints.changed.set()
    await _until_status(running, "other", 503)
    del running.endpoints.picture["other"]
    running.endpoints.changed.set()
    await _until_status(running, "other", 404)


async def test_a_tenant_that_is_not_served_is_told_when_to_come_again(running: Edge) -> None:
    await _until_status(running, "hook", 202)
    running.tenants.states["acme"] = Tenant.STATE_SUSPENDED
    running.tenants.changed.set()
    await _until_status(running, "hook", 503)
    refused = await running.post(b"{}", signed(b"{}"))
    assert (title(refused), refused.headers["retry-after"]) == ("TENANT_SUSPENDED", "300")
    running.tenants.states["acme"] = Tenant.STATE_ACTIVE
    running.tenants.changed.set()
    await _until_status(running, "hook", 200)
    # Deleted: it is not told of any more, and what the gateway still holds of it serves nobody.
    running.tenants.states = {"other": Tenant.STATE_ACTIVE}
    running.tenants.changed.set()
    await _until_status(running, "hook", 503)


async def test_what_was_told_of_tenants_outlives_the_teller(running: Edge) -> None:
    running.tenants.states["acme"] = Tenant.STATE_SUSPENDED
    running.tenants.changed.set()
    await _until_status(running, "hook", 503)
    await running.servers["credentials"].__aexit__()
    refused = await running.post(b"{}", signed(b"{}"))
    assert title(refused) == "TENANT_SUSPENDED"


async def _until_status(running: Edge, endpoint: str, status: int) -> None:
    async with asyncio.timeout(30):
        while (await running.post(b"{}", signed(b"{}"), endpoint)).status_code != status:
            await asyncio.sleep(0.01)


async def test_only_post_and_only_below_hooks(running: Edge) -> None:
    assert (await running.client.get(f"{running.url}/hooks/hook")).status_code == 405
    assert (await running.client.post(f"{running.url}/hooks/")).status_code == 404
    assert (await running.client.post(f"{running.url}/hooks/a/b")).status_code == 404
    assert (await running.client.post(f"{running.url}/hooks/hook/")).status_code == 404


async def test_a_body_beyond_the_limit_is_not_read_to_its_end(running: Edge) -> None:
    webhook = github_webhook(max_body_bytes=1000)
    running.endpoints.picture["hook"] = Endpoint(endpoint="hook", connection=CONNECTION, webhook=webhook)
    running.endpoints.changed.set()
    async with asyncio.timeout(30):  # until the new bound is known
        while (answer := await running.post(b"x" * 1001, signed(b"x" * 1001))).status_code == 202:
            await asyncio.sleep(0.01)
    assert (answer.status_code, title(answer)) == (413, "BODY_TOO_LARGE")
    assert (await running.post(b"x" * 1000, signed(b"x" * 1000, "d-2"))).status_code == 202


async def test_the_largest_body_a_provider_sends_gets_through(running: Edge) -> None:
    body = json.dumps({"action": "opened", "x": "y" * (25 * 1024 * 1024 - 100)}).encode()
    assert (await running.post(body, signed(body))).status_code == 202
    assert running.inbox.deliveries[0].body == body


async def test_who_sends_a_body_too_slowly_is_refused_and_hung_up_on(tmp_path: Path) -> None:
    head = b"POST /hooks/hook HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nconnection: close\r\n\r\n"
    with Port() as port:
        async with edge(tmp_path, port.number, body_seconds=0.2) as running:
            await _until_status(running, "hook", 202)
            reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
            writer.write(head + b"{")
            async with asyncio.timeout(30):
                answer = await reader.read()
            writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"did not come within 0.2 seconds" in answer


async def test_what_is_urgent_is_marked(running: Edge) -> None:
    webhook = github_webhook(
        priority_overrides=[PriorityOverride(event_type="push.*", priority=PRIORITY_LIVE_CRITICAL)]
    )
    running.endpoints.picture["hook"] = Endpoint(endpoint="hook", connection=CONNECTION, webhook=webhook)
    running.endpoints.changed.set()
    body = b'{"action": "forced"}'
    async with asyncio.timeout(30):
        number = 0
        while True:
            number += 1
            await running.post(body, signed(body, f"d-{number}"))
            if running.inbox.deliveries[-1].priority == PRIORITY_LIVE_CRITICAL:
                return


async def test_many_senders_share_calls_and_each_hears_of_its_own(running: Edge) -> None:
    bodies = [json.dumps({"n": number}).encode() for number in range(300)]
    answers = await asyncio.gather(
        *(running.post(body, signed(body, f"d-{number}")) for number, body in enumerate(bodies))
    )
    assert [answer.status_code for answer in answers] == [202] * 300
    by_id = {delivery.delivery_id: delivery.body for delivery in running.inbox.deliveries}
    assert [by_id[answer.json()["delivery_id"]] for answer in answers] == bodies
    assert len(running.inbox.batches) < 300


async def test_a_yes_waits_for_the_inbox(running: Edge) -> None:
    commit = asyncio.Event()

    async def accept(deliveries: list[DeliveryInput]) -> list[AcceptOutcome]:
        await commit.wait()
        return await running.inbox.remember(deliveries)

    running.inbox.accept = accept
    waiting = asyncio.create_task(running.post(b"{}", signed(b"{}")))
    async with asyncio.timeout(30):
        while not running.inbox.batches:
            await asyncio.sleep(0.01)
    assert not waiting.done()
    commit.set()
    assert (await waiting).status_code == 202


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([], 503),
        ([AcceptOutcome()], 503),
        ([AcceptOutcome(result=AcceptOutcome.RESULT_ACCEPTED)] * 2, 503),
        (
            [
                AcceptOutcome(
                    result=AcceptOutcome.RESULT_REFUSED,
                    failure=Failure(kind=FAILURE_KIND_NOT_FOUND, message="the connection is gone"),
                )
            ],
            404,
        ),
    ],
)
async def test_anything_but_a_clear_yes_is_no(
    running: Edge, outcomes: list[AcceptOutcome], status: int
) -> None:
    async def accept(_: list[DeliveryInput]) -> list[AcceptOutcome]:
        return outcomes

    running.inbox.accept = accept
    assert (await running.post(b"{}", signed(b"{}"))).status_code == status


@pytest.mark.parametrize(
    "problem",
    [
        Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="PostgreSQL", why="it is away"),
        Problem(Code.DEADLINE_EXCEEDED, method="AcceptDeliveries"),
    ],
)
async def test_an_inbox_that_fails_or_may_have_is_a_503(running: Edge, problem: Problem) -> None:
    async def accept(_: list[DeliveryInput]) -> list[AcceptOutcome]:
        raise problem

    running.inbox.accept = accept
    answer = await running.post(b"{}", signed(b"{}"))
    assert (answer.status_code, title(answer)) == (503, "DEPENDENCY_UNAVAILABLE")


async def test_what_it_holds_survives_an_outage_of_the_control_plane(running: Edge) -> None:
    assert (await running.post(b"{}", signed(b"{}", "d-1"))).status_code == 202
    for name in ("credentials", "registry"):
        await running.servers[name].__aexit__()
    assert (await running.post(b"{}", signed(b"{}", "d-2"))).status_code == 202
    assert (await running.client.get(f"{running.url}/readyz")).status_code == 503


async def test_many_first_deliveries_ask_the_vault_once(running: Edge) -> None:
    running.leases.hold.clear()
    waiting = [asyncio.create_task(running.post(b"{}", signed(b"{}", f"d-{n}"))) for n in range(20)]
    async with asyncio.timeout(30):
        while running.leases.asked == 0:
            await asyncio.sleep(0.01)
    running.leases.hold.set()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {202}
    assert running.leases.asked == 1
