"""From a signed webhook to a subscriber, on both runners."""

from __future__ import annotations

import hashlib
import json

import pytest

from foundation.errors import Code, Problem
from tests.scenarios.path import Installation, push, receiving
from tieline.event.v1.event_pb2 import AUTHENTICITY_VERIFIED
from tieline.mapper.v1 import events_pb2_grpc
from tieline.mapper.v1.events_pb2 import GetDeliveryRequest, GetEventRequest


async def test_a_signed_push_becomes_an_event_that_a_subscriber_hears(
    installation: Installation, tenant: str
) -> None:
    async with receiving(installation, tenant) as acme, await acme.subscribe("ops") as ops:
        payload = push(1)
        answer = await acme.send(payload, "d-1")
        assert answer.status_code == 202, answer.text
        [event] = await acme.stored(1)
        await ops.hear({event.id})

        assert event.type == "github.push"
        assert event.tenant == acme.name
        assert event.connection == f"{acme.name}/connections/github-main"
        assert event.source.plugin == "github"
        assert event.authenticity == AUTHENTICITY_VERIFIED
        body = json.dumps(payload).encode()
        assert event.raw.sha256 == hashlib.sha256(body).digest()
        assert event.raw.delivery.endswith(answer.json()["delivery_id"])
        assert ("commit", payload["after"]) in {
            (entity.kind, entity.id.rpartition("@")[2].rpartition("/")[2]) for entity in event.entities
        } or any(payload["after"] in entity.id for entity in event.entities)
        stub = events_pb2_grpc.EventServiceStub(acme.mapper)
        assert (await stub.GetEvent(GetEventRequest(name=f"{acme.name}/events/{event.id}"))).id == event.id
        original = await stub.GetDelivery(GetDeliveryRequest(name=event.raw.delivery))
        assert original.body == body


async def test_a_bad_signature_is_refused_and_leaves_nothing(installation: Installation, tenant: str) -> None:
    async with receiving(installation, tenant) as acme:
        assert (await acme.send(push(1), "d-1", secret="another")).status_code == 401
        assert (await acme.send(push(2), "d-2")).status_code == 202
        [event] = await acme.stored(1)
        assert push(2)["after"] in event.external_key or any(
            push(2)["after"] in entity.id for entity in event.entities
        )


async def test_a_delivery_sent_twice_is_stored_once(installation: Installation, tenant: str) -> None:
    async with receiving(installation, tenant) as acme:
        first = await acme.send(push(1), "d-1")
        again = await acme.send(push(1), "d-1")
        assert (first.status_code, again.status_code) == (202, 200)
        assert first.json() == again.json()
        await acme.send(push(2), "d-2")
        assert len(await acme.stored(2)) == 2


async def test_one_tenant_hears_nothing_of_another(installation: Installation, tenant: str) -> None:
    async with receiving(installation, tenant) as acme, receiving(installation, f"{tenant}-other") as other:
        async with await acme.subscribe("ops") as ops, await other.subscribe("ops") as theirs:
            await acme.send(push(1), "d-1")
            await other.send(push(2), "d-1")
            [mine], [its] = await acme.stored(1), await other.stored(1)
            await ops.hear({mine.id})
            await theirs.hear({its.id})
            assert set(ops.heard) == {mine.id}
            assert set(theirs.heard) == {its.id}
        stub = events_pb2_grpc.EventServiceStub(acme.mapper)
        with pytest.raises(Problem) as refused:
            await stub.GetEvent(GetEventRequest(name=f"{acme.name}/events/{its.id}"))
        assert refused.value.code is Code.NOT_FOUND


async def test_a_ping_is_taken_and_becomes_no_event(installation: Installation, tenant: str) -> None:
    async with receiving(installation, tenant) as acme:
        ping = {"zen": "Keep it logically awesome.", "hook_id": 1, "repository": push(1)["repository"]}
        assert (await acme.send(ping, "d-0", event="ping")).status_code == 202
        await acme.send(push(1), "d-1")
        assert len(await acme.stored(1)) == 1
