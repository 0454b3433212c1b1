"""What the platform says about itself becomes an event like any other, once, and nothing else gets in that way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import nats
import pytest
from nats.js import JetStreamContext

from foundation.notices import notice, stream
from foundation.process.testing import until
from services.mapper.notices import Unfit, read
from tests.services.mapper.kit import ADMIN, Installation, Listener, Mapper, member_of
from tieline.event.v1.content_pb2 import SEVERITY_ERROR, Entity, FailureFacts
from tieline.event.v1.event_pb2 import AUTHENTICITY_INTERNAL, AUTHENTICITY_VERIFIED, Event

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = "tenants/acme/credentials/key"
SUBJECT = "notices.credentials.acme"


def told(key: str = "once", tenant: str = "acme") -> Event:
    return notice(
        "credentials",
        tenant,
        "credential.refused",
        key=key,
        title="tenants/acme/credentials/key is refused by its provider",
        severity=SEVERITY_ERROR,
        at=NOW,
        entities={"credential": KEY},
        attributes={"audience": "tenant-admin"},
        failure=FailureFacts(state=FailureFacts.STATE_FAILING, key=KEY),
    )


@asynccontextmanager
async def publishing(installation: Installation) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(installation.nats)
    try:
        jetstream = client.jetstream()
        await stream.ensure(jetstream)
        yield jetstream
    finally:
        await client.close()


async def test_a_notice_is_stored_once_and_told_to_who_may_hear_it(
    installation: Installation, mapper: Mapper
) -> None:
    async with (
        mapper.as_(member_of("acme")) as member,
        mapper.as_(member_of("other")) as stranger,
        publishing(installation) as bus,
    ):
        await member.subscribe("acme", "all")
        async with Listener(mapper, "acme", "all").listening() as listener:
            for _ in range(3):  # as after a crash of whoever tells
                await bus.publish(SUBJECT, told().SerializeToString())
            await bus.publish(SUBJECT, told("another").SerializeToString())
            await until(lambda: len(listener.ids) == 2, 30)
        events = await member.list("acme")
        assert [event.external_key for event in events].count("once") == 1
        event = next(event for event in events if event.external_key == "once")
        assert (event.tenant, event.connection, event.source.component) == ("tenants/acme", "", "credentials")
        assert event.authenticity == AUTHENTICITY_INTERNAL
        assert event.HasField("stored_at")
        assert json.loads(event.attributes)["audience"] == "tenant-admin"
        assert await stranger.list("other") == []
        found = await member.list("acme", entities=[Entity(kind="credential", id=KEY)])
        assert len(found) == 2


async def test_what_is_no_notice_is_put_aside_and_holds_nobody_up(
    installation: Installation, mapper: Mapper
) -> None:
    async with publishing(installation) as bus, mapper.as_(ADMIN) as admin:
        await bus.publish(SUBJECT, b"\xff no event")
        await bus.publish("notices.credentials.other", told().SerializeToString())
        await bus.publish(SUBJECT, told("good").SerializeToString())

        async def stored() -> bool:
            return [event.external_key for event in await admin.list("acme")] == ["good"]

        await until(stored, 30)
        assert await admin.list("other") == []

        async def taken() -> bool:
            return (await bus.stream_info(stream.STREAM)).state.messages == 0

        await until(taken, 30)


@pytest.mark.parametrize(
    ("subject", "change", "why"),
    [
        ("notices.gateway.acme", {}, "it says that it is of credentials"),
        ("notices.credentials.other", {}, "about tenants/acme"),
        (SUBJECT, {"type": "github.push"}, "not marked as a notice"),
        (SUBJECT, {"authenticity": AUTHENTICITY_VERIFIED}, "not marked as a notice"),
        (SUBJECT, {"connection": "tenants/acme/connections/x"}, "not marked as a notice"),
        (SUBJECT, {"id": "7"}, "no event with an id"),
        (SUBJECT, {"title": ""}, "/title"),
        (SUBJECT, {"attributes": b"[]"}, "/attributes"),
    ],
)
def test_only_a_whole_notice_of_its_sender_is_read(subject: str, change: dict[str, object], why: str) -> None:
    event = told()
    for name, value in change.items():
        setattr(event, name, value)
    with pytest.raises(Unfit, match=why):
        read(subject, event.SerializeToString(), NOW)
    assert read(SUBJECT, told().SerializeToString(), NOW).tenant == "acme"
