"""A stream is polled and becomes events, and people look at it, poll it now, begin again, and read the past."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from foundation.engines.testing import Served
from foundation.process.testing import until
from tests.scenarios.inside import Inside, inside
from tests.scenarios.suite import tieline
from tests.scenarios.test_poison import _sql, admin_of
from tests.services.registry.polled import make_polled
from tieline.credentials.v1 import tenants_pb2_grpc
from tieline.credentials.v1.tenants_pb2 import CreateTenantRequest
from tieline.registry.v1 import connections_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, StreamChoice

ITEMS, PARTS = StreamChoice(stream="items"), StreamChoice(stream="parts", exclude=["x*"])


async def test_what_is_polled_becomes_events_and_people_see_how_that_goes(
    short_dir: Path, engines: Served
) -> None:
    # Beside its code, where a confined one can read it.
    (make_polled(short_dir) / "parts").write_text("a b x")
    async with (
        AsyncExitStack() as stack,
        inside(short_dir / "data", engines, short_dir / "plugins") as running,
    ):
        admin = await admin_of(running, stack)
        tenants = tenants_pb2_grpc.TenantServiceStub(admin["credentials"])
        await tenants.CreateTenant(CreateTenantRequest(tenant_id="acme"))
        await _connect(admin["registry"])
        # Three records of the whole stream, and three of each of its two parts.
        await until(lambda: _has(running, 9), 90)
        types = [row["type"] for row in await _sql(running, "select type from mapper.events")]
        assert set(types) == {"polled.said"}

        listed = await _schedule(running, "list")
        assert [item["name"].partition("/connections/")[2] for item in listed["items"]] == [
            "main/schedules/items",
            "main/schedules/parts",
            "main/schedules/parts.a",
            "main/schedules/parts.b",
        ]
        assert (await _schedule(running, "show", "main", "items"))["records"] == "3"
        await _schedule(running, "run", "main", "items")
        await until(lambda: _has(running, 12), 90)
        await _schedule(running, "reset", "main", "items", "--from", "2026-01-01")
        past = ("backfill", "main", "items", "--from", "2026-01-01", "--to", "2026-01-07T00:00:00Z")
        begun = await _schedule(running, *past)
        await until(lambda: _has(running, 18), 90)
        name = begun["name"].rpartition("/")[2]

        async def done() -> bool:
            shown = await _schedule(running, "show", "main", name)
            return bool(shown["state"] == "STATE_DONE")

        await until(done, 60)
        assert (await _schedule(running, "cancel", "main", name))["state"] == "STATE_DONE"
        code, _, said = await tieline(
            "schedule", "run", "main", "nothing", "--tenant", "acme", "--data", str(running.data)
        )
        assert code == 1
        assert "There is no schedule nothing" in said
        code, _, said = await tieline(
            *("schedule", "reset", "main", "items", "--from", "yesterday"),
            *("--tenant", "acme", "--data", str(running.data)),
        )
        assert (code, "not like 2026-01-31" in said) == (1, True)
        assert await _has(running, 18), "what came again after the reset is no second event"


async def _connect(registry: Any) -> None:
    wanted = Connection(plugin="plugins/polled", settings=b"{}", streams=[ITEMS, PARTS])
    stub = connections_pb2_grpc.ConnectionServiceStub(registry)
    request = CreateConnectionRequest(parent="tenants/acme", connection_id="main", connection=wanted)
    deadline = asyncio.get_running_loop().time() + 60
    while not (await stub.CreateConnection(request)).applied_revision:
        assert asyncio.get_running_loop().time() < deadline


async def _schedule(running: Inside, *words: str) -> Any:
    code, out, err = await tieline(
        "schedule", *words, "--json", "--tenant", "acme", "--data", str(running.data)
    )
    assert code == 0, (words, out, err)
    return json.loads(out)


async def _has(running: Inside, events: int) -> bool:
    rows: Sequence[asyncpg.Record] = await _sql(running, "select from mapper.events")
    assert len(rows) <= events
    return len(rows) == events
