"""One trace from the sender's request to the subscriber's message, across HTTP, rows, gRPC and JetStream."""

from __future__ import annotations

import asyncpg
import nats

from tests.scenarios.path import push, receiving
from tests.scenarios.suite import Standing

TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_the_senders_trace_reaches_the_message_of_its_event(shared: Standing, tenant: str) -> None:
    async with receiving(shared, tenant) as acme:
        acme.client.headers["traceparent"] = f"00-{TRACE}-b7ad6b7169203331-01"
        assert (await acme.send(push(1), "d-1")).status_code == 202
        [event] = await acme.stored(1)
        database = await shared.database()
        try:
            assert TRACE in await _traceparent(database, tenant)
        finally:
            await database.close()
        url = next(
            line.split('"')[1]
            for line in (shared.data / "run/mapper.toml").read_text().splitlines()
            if line.startswith("nats_url")
        )
        client = await nats.connect(url)
        try:
            subscription = await client.jetstream().subscribe(f"events.{tenant}.>", ordered_consumer=True)
            message = await subscription.next_msg(timeout=30)
            assert message.headers is not None
            assert message.headers["Nats-Msg-Id"] == event.id
            assert TRACE in message.headers["traceparent"]
        finally:
            await client.close()


async def _traceparent(database: asyncpg.Connection, tenant: str) -> str:
    found: str = await database.fetchval(
        "select traceparent from mapper.deliveries where tenant = $1", tenant
    )
    return found
