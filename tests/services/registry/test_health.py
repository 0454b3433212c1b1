"""Health through the registry's own API: what calls, checks and processes show, who is told, what comes back by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.process.ports import Port
from foundation.process.testing import until
from foundation.settings import Address
from services.registry.main import serve
from tests.services.registry.conftest import ADMIN, FOREIGN, MAPPER, VIEWER, Running, prepared, ready
from tests.services.registry.plugins import make_plugin
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1.inbox_pb2 import Backlog
from tieline.plugin.v1.execute_pb2 import ExecuteRequest
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import (
    broker_pb2,
    broker_pb2_grpc,
    connections_pb2_grpc,
    processes_pb2,
    processes_pb2_grpc,
    status_pb2_grpc,
)
from tieline.registry.v1 import status_pb2 as pb
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, PauseConnectionRequest

NAME = "tenants/acme/connections/main"
PLATFORM = Principal(Kind.USER, "users/root", platform_roles=frozenset({Role.PLATFORM_ADMIN}))
H = pb.ConnectionStatus
ACTION = """
[[actions]]
name = "write"
idempotency = "none"
"""


@pytest.fixture
async def told(engines: Served, tmp_path: Path) -> AsyncIterator[Running]:
    """A registry that tells quickly, and whose notices stay where they are written."""
    async with prepared(engines, tmp_path) as running:
        quick = replace_settings(
            running, nats_url=None, alarm_seconds=0.5, calm_seconds=0.5, lag_seconds=60.0, sandbox="none"
        )
        async with started(quick):
            yield quick


def replace_settings(running: Running, **changes: Any) -> Running:
    return replace(
        running, settings=msgspec.structs.replace(running.settings, **changes), stopping=asyncio.Event()
    )


@asynccontextmanager
async def started(running: Running) -> AsyncIterator[None]:
    task = asyncio.create_task(serve(running.settings, running.stopping))
    try:
        await ready(running, task)
        yield
    finally:
        running.stopping.set()
        await task


def make_moody(below: Path, mood: str = "well") -> Path:
    folder = make_plugin(below / "plugins", "moody", rest=ACTION)
    here = Path(__file__).parent
    log = repr(str(below / "calls.jsonl"))
    (folder / "raw_plugin.py").write_text((here / "raw_plugin.py").read_text().replace('"calls.jsonl"', log))
    (folder / "plugin.py").write_text((here / "moody_plugin.py").read_text().replace('"calls.jsonl"', log))
    return set_mood(below, mood)


def set_mood(below: Path, mood: str) -> Path:
    (below / "mood").write_text(mood)
    return below


async def connect_to(registry: Running, plugin: str, id_: str = "main") -> Connection:
    wanted = Connection(plugin=f"plugins/{plugin}")
    wanted.credentials.add(slot="webhook", credential="tenants/acme/credentials/hook")
    request = CreateConnectionRequest(parent="tenants/acme", connection_id=id_, connection=wanted)
    async with registry.as_(ADMIN) as channel:
        stub = connections_pb2_grpc.ConnectionServiceStub(channel)
        made = Connection()

        async def applied() -> bool:
            nonlocal made
            try:
                made = await stub.CreateConnection(request)
            except Problem as problem:
                if "there is no plugin" not in problem.sentence:
                    raise
            return bool(made.applied_revision)

        await until(applied, 30)
    return made


async def transform(registry: Running, times: int = 1, say: str = "hello") -> list[str]:
    """Reasons of failures, one for each call."""
    return [result.failure.reason for result in await _transform(registry, times, say)]


async def transform_titles(registry: Running, say: str = "hello") -> list[str]:
    """What one delivery becomes."""
    (result,) = await _transform(registry, 1, say)
    return [draft.title for outcome in result.outcomes for draft in outcome.events.drafts]


async def _transform(
    registry: Running, times: int, say: str
) -> list[broker_pb2.TransformDataResponse.Result]:
    found = []
    async with registry.as_(MAPPER) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        for number in range(times):
            group = broker_pb2.TransformDataRequest.Group(
                ref=broker_pb2.ConnectionRef(connection=NAME),
                inputs=[
                    TransformInput(
                        input_id=f"{number}", webhook="events", payload=json.dumps({"say": say}).encode()
                    )
                ],
            )
            answer = await stub.TransformData(broker_pb2.TransformDataRequest(groups=[group]))
            found.append(answer.results[0])
    return found


async def status(registry: Running, principal: Principal = VIEWER) -> pb.ConnectionStatus:
    async with registry.as_(principal) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        try:
            return await stub.GetConnectionStatus(pb.GetConnectionStatusRequest(name=NAME))
        except Problem as problem:
            if problem.code in (Code.NOT_FOUND, Code.DEPENDENCY_UNAVAILABLE):
                return pb.ConnectionStatus()
            raise


async def becomes(registry: Running, health: int, **fields: Any) -> pb.ConnectionStatus:
    found = pb.ConnectionStatus()

    async def is_so() -> bool:
        nonlocal found
        found = await status(registry)
        return found.health == health and all(getattr(found, name) == value for name, value in fields.items())

    await until(is_so, 30)
    return found


async def notices(registry: Running) -> list[Event]:
    rows = await registry.sql("select content from registry.notices order by number")
    return [Event.FromString(row["content"]) for row in rows]


async def types(registry: Running) -> list[str]:
    return [event.type for event in await notices(registry)]


async def test_what_calls_show_is_told_to_whoever_may_know(registry: Running, tmp_path: Path) -> None:
    make_plugin(tmp_path / "plugins", "one")
    await connect_to(registry, "one")
    assert await transform(registry, 3) == [""] * 3
    found = await becomes(registry, H.HEALTH_OK, outcomes=H.HEALTH_OK, process=H.HEALTH_OK)
    assert (found.traffic.calls, found.traffic.failures, found.traffic.inputs, found.traffic.events) == (
        3,
        0,
        3,
        3,
    )
    assert (
        0 < found.traffic.p50.ToTimedelta().total_seconds() <= found.traffic.p99.ToTimedelta().total_seconds()
    )
    assert found.plugin_version == "one@1.0.0"
    assert found.HasField("last_event_time")
    with pytest.raises(Problem) as refused:
        await status(registry, FOREIGN)
    assert refused.value.code is Code.TENANT_FOREIGN
    async with registry.as_(VIEWER) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        mine = await stub.ListConnectionStatuses(pb.ListConnectionStatusesRequest(parent="tenants/acme"))
        assert [one.connection for one in mine.connection_statuses] == [NAME]
        with pytest.raises(Problem):
            await stub.ListAllConnectionStatuses(pb.ListAllConnectionStatusesRequest())
    async with registry.as_(PLATFORM) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        everybody = await stub.ListAllConnectionStatuses(pb.ListAllConnectionStatusesRequest())
        assert [one.connection for one in everybody.connection_statuses] == [NAME]
        broken = await stub.ListAllConnectionStatuses(
            pb.ListAllConnectionStatusesRequest(health=[H.HEALTH_DOWN])
        )
        assert not broken.connection_statuses
        with pytest.raises(Problem, match="no health 77"):
            await stub.ListAllConnectionStatuses(pb.ListAllConnectionStatusesRequest(health=[77]))  # type: ignore[list-item]


async def test_one_that_is_paused_while_it_is_down_is_not_said_to_work(told: Running, tmp_path: Path) -> None:
    make_moody(tmp_path)
    await connect_to(told, "moody")
    set_mood(tmp_path, "sick")
    await transform(told, 6)

    async def is_told() -> bool:
        return "tieline.connection.down" in await types(told)

    async def is_over() -> bool:
        return "tieline.connection.recovered" in await types(told)

    await until(is_told, 30)
    async with told.as_(ADMIN) as channel:
        stub: Any = connections_pb2_grpc.ConnectionServiceStub(channel)
        await stub.PauseConnection(PauseConnectionRequest(name=NAME, reason="they move house"))
    await until(is_over, 30)
    over = [event for event in await notices(told) if event.type == "tieline.connection.recovered"]
    assert [event.title for event in over] == [f"{NAME} is paused"]


async def test_an_integration_that_is_down_is_told_once_and_so_is_its_recovery(
    told: Running, tmp_path: Path
) -> None:
    make_moody(tmp_path)
    await connect_to(told, "moody")
    await becomes(told, H.HEALTH_OK)
    set_mood(tmp_path, "sick")
    await transform(told, 6)
    down = await becomes(told, H.HEALTH_DOWN, outcomes=H.HEALTH_DOWN)
    assert "nobody is at home" in down.explanation
    assert down.state == Connection.STATE_FAILING
    assert [circuit.operation for circuit in down.circuits] == ["TransformData"]

    async def is_told() -> bool:
        return "tieline.connection.down" in await types(told)

    await until(is_told, 30)
    set_mood(tmp_path, "well")

    async def works() -> bool:
        await transform(told)
        return (await status(told)).outcomes == H.HEALTH_DEGRADED or (
            await status(told)
        ).outcomes == H.HEALTH_OK

    await until(works, 30)

    async def is_over() -> bool:
        return "tieline.connection.recovered" in await types(told)

    await until(is_over, 30)
    assert (await types(told)).count("tieline.connection.down") == 1
    down_event, over = [event for event in await notices(told) if "connection." in event.type]
    assert down_event.tenant == over.tenant == "tenants/acme"
    assert down_event.failure.key == over.failure.key
    assert json.loads(down_event.attributes)["plugin"] == "plugins/moody"


async def test_a_check_that_fails_is_repeated_until_it_does_not(told: Running, tmp_path: Path) -> None:
    make_moody(tmp_path)
    await connect_to(told, "moody")
    await becomes(told, H.HEALTH_OK)
    set_mood(tmp_path, "sick")
    await told.sql("update registry.connection_health set next_check_time = now()")
    down = await becomes(told, H.HEALTH_DOWN, instance=H.HEALTH_DOWN)
    assert "api: the provider is closed today" in down.explanation
    set_mood(tmp_path, "well")  # and nobody does anything
    await becomes(told, H.HEALTH_OK, instance=H.HEALTH_OK)


async def test_what_is_not_permitted_rests_and_goes_on_by_itself(told: Running, tmp_path: Path) -> None:
    make_moody(tmp_path, "denied")
    await connect_to(told, "moody")
    await becomes(told, H.HEALTH_OK)
    async with told.as_(MAPPER) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        act = broker_pb2.ExecuteRequest(
            ref=broker_pb2.ConnectionRef(connection=NAME),
            request=ExecuteRequest(action="write", idempotency_key="k"),
        )
        with pytest.raises(Problem):
            await stub.Execute(act)
        suspended = await becomes(told, H.HEALTH_DOWN, state=Connection.STATE_SUSPENDED)
        assert "it may not write here" in suspended.explanation
        with pytest.raises(Problem, match="SUSPENDED"):
            await stub.Execute(act)
    assert await transform(told) == [""], "what arrives is read all the same: that calls nobody"
    await becomes(told, H.HEALTH_DEGRADED, state=Connection.STATE_ACTIVE)  # the denied call was a moment ago
    assert [name for name in await types(told) if "connection." in name] == [
        "tieline.connection.suspended",
        "tieline.connection.resumed",
    ]


async def test_a_plugin_in_quarantine_is_told_to_each_tenant_that_uses_it(
    told: Running, tmp_path: Path
) -> None:
    folder = make_plugin(tmp_path / "plugins", "one")
    await connect_to(told, "one")
    code = (folder / "plugin.py").read_text()
    async with told.as_(PLATFORM) as channel:
        stub = processes_pb2_grpc.ProcessServiceStub(channel)
        (folder / "plugin.py").write_text("raise SystemExit(3)")
        (process,) = (
            await stub.ListProcesses(processes_pb2.ListProcessesRequest(parent="plugins/one"))
        ).processes
        await stub.RestartProcess(processes_pb2.RestartProcessRequest(name=process.name))
        down = await becomes(told, H.HEALTH_DOWN, process=H.HEALTH_DOWN)
        assert "plugin one" in down.explanation

        async def is_told() -> bool:
            return "tieline.plugin.quarantined" in await types(told)

        await until(is_told, 60)
        limits = await limitations(told)
        assert "waits; all others go on" in limits["plugins/one"]
        (folder / "plugin.py").write_text(code)
        await stub.ReleaseProcess(processes_pb2.ReleaseProcessRequest(name=process.name))
        await becomes(told, H.HEALTH_OK)

        async def is_over() -> bool:
            return "tieline.plugin.recovered" in await types(told)

        await until(is_over, 30)
    assert "tieline.connection.down" not in await types(told), (
        "the plugin's trouble is told once, not by connection"
    )
    assert "plugins/one" not in await limitations(told)


async def limitations(registry: Running) -> Mapping[str, str]:
    async with registry.as_(PLATFORM) as channel:
        stub = status_pb2_grpc.StatusServiceStub(channel)
        found = await stub.GetPlatformStatus(pb.GetPlatformStatusRequest())
    return {one.component: f"{one.reason} - {one.effect}" for one in found.limitations}


async def test_what_waits_is_shown_and_told_when_it_waits_too_long(told: Running, tmp_path: Path) -> None:
    make_plugin(tmp_path / "plugins", "one")
    await connect_to(told, "one")
    await becomes(told, H.HEALTH_OK)
    waiting = Backlog(connection=NAME, waiting=7, dead_letters=2)
    waiting.oldest_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=90))
    told.mapper.backlogs = [waiting]
    found = await becomes(told, H.HEALTH_DEGRADED, backlog=7, dead_letters=2)
    assert found.lag.seconds >= 90

    async def is_told() -> bool:
        return "tieline.connection.lagging" in await types(told)

    await until(is_told, 30)
    told.mapper.backlogs = []
    await becomes(told, H.HEALTH_OK, backlog=0, dead_letters=0)


async def test_replicas_know_what_each_of_them_met_and_tell_it_once(engines: Served, tmp_path: Path) -> None:
    make_moody(tmp_path)
    async with AsyncExitStack() as stack:
        first = replace_settings(
            await stack.enter_async_context(prepared(engines, tmp_path)),
            nats_url=None,
            alarm_seconds=0.5,
            calm_seconds=0.5,
            sandbox="none",
        )
        http, grpc = stack.enter_context(Port()), stack.enter_context(Port())
        second = replace_settings(first, listen=Address.parse(grpc.address), http=Address.parse(http.address))
        await stack.enter_async_context(started(first))
        await stack.enter_async_context(started(second))
        await connect_to(first, "moody")
        await transform(first, 2)
        await becomes(second, H.HEALTH_OK, outcomes=H.HEALTH_OK)
        assert (await status(second)).traffic.calls == 2
        set_mood(tmp_path, "sick")
        await asyncio.gather(transform(first, 6), transform(second, 6))
        for replica in (first, second):
            await becomes(replica, H.HEALTH_DOWN, outcomes=H.HEALTH_DOWN)

        async def is_told() -> bool:
            return "tieline.connection.down" in await types(first)

        await until(is_told, 30)
        rows = await first.sql("select distinct replica from registry.health_reports")
        assert len(rows) == 2
        set_mood(tmp_path, "well")

        async def is_over() -> bool:
            await asyncio.gather(transform(first), transform(second))
            return "tieline.connection.recovered" in await types(first)

        await until(is_over, 60)
        assert (await types(first)).count("tieline.connection.down") == 1
        assert (await types(first)).count("tieline.connection.recovered") == 1


async def test_since_when_it_is_so_outlasts_the_registry(engines: Served, tmp_path: Path) -> None:
    make_moody(tmp_path)
    async with prepared(engines, tmp_path) as running:
        first = replace_settings(running, nats_url=None, sandbox="none")
        async with started(first):
            await connect_to(first, "moody")
            await becomes(first, H.HEALTH_OK)
            async with first.as_(ADMIN) as channel:
                stub: Any = connections_pb2_grpc.ConnectionServiceStub(channel)
                await stub.PauseConnection(PauseConnectionRequest(name=NAME))
            before = await becomes(first, H.HEALTH_PAUSED)

            async def kept() -> bool:
                rows = await first.sql("select health_time from registry.connection_health")
                return [row["health_time"] for row in rows] == [before.health_time.ToDatetime(UTC)]

            await until(kept, 30)
        second = replace_settings(running, nats_url=None, sandbox="none")
        # Whoever tells the other replicas waits for this, and is not the first to read what was known.
        slow = await asyncpg.connect(running.admin.reveal())
        try:
            async with slow.transaction():
                await slow.execute("lock table registry.health_reports in access exclusive mode")
                async with started(second):
                    now = await becomes(second, H.HEALTH_PAUSED)
        finally:
            await slow.close()
        assert now.health_time == before.health_time


async def test_without_the_vault_and_the_mapper_what_needs_neither_goes_on(
    engines: Served, tmp_path: Path
) -> None:
    make_plugin(tmp_path / "plugins", "one")
    async with AsyncExitStack() as stack:
        nobody = stack.enter_context(Port())
        running = await stack.enter_async_context(prepared(engines, tmp_path))
        alone = replace_settings(running, mapper=Address.parse(nobody.address))
        await stack.enter_async_context(started(alone))
        await connect_to(alone, "one")

        async def is_said() -> bool:
            return "mapper" in await limitations(alone)

        await until(is_said, 30)
        said = await limitations(alone)
        assert "polls stop where they are" in said["mapper"]
        assert "credentials" not in said
        assert await transform(alone, 2) == ["", ""]
        await becomes(alone, H.HEALTH_OK)
        alone.audit.away = True
        async with alone.as_(ADMIN) as channel:
            stub = connections_pb2_grpc.ConnectionServiceStub(channel)
            wanted = Connection(plugin="plugins/one")
            wanted.credentials.add(slot="webhook", credential="tenants/acme/credentials/hook")
            with pytest.raises(Problem) as refused:
                await stub.CreateConnection(
                    CreateConnectionRequest(parent="tenants/acme", connection_id="other", connection=wanted)
                )
        assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE
        assert not await alone.sql("select 1 from registry.connections where id = 'other'")


async def test_watchers_hear_everything_at_first_and_then_what_changes(told: Running, tmp_path: Path) -> None:
    make_moody(tmp_path)
    heard: asyncio.Queue[pb.WatchConnectionStatusesResponse] = asyncio.Queue()

    async def listen() -> None:
        async with told.as_(VIEWER) as channel:
            stub = status_pb2_grpc.StatusServiceStub(channel)
            async for message in stub.WatchConnectionStatuses(
                pb.WatchConnectionStatusesRequest(parent="tenants/acme"), timeout=120
            ):
                heard.put_nowait(message)

    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(60):
            first = await heard.get()
            assert first.complete
            assert not first.connection_statuses
            await connect_to(told, "moody")
            set_mood(tmp_path, "sick")
            await transform(told, 6)
            while True:
                message = await heard.get()
                (one,) = message.connection_statuses
                if one.health == H.HEALTH_DOWN:
                    break
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
