"""What a plugin is not asked for any more is forgotten: by the plugin, by its proxy, and by us."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from foundation.clock import SteeredClock
from foundation.store.watched import Snapshot
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.connections.connection import Application, Connection, State
from services.registry.connections.releasing import OVER_SECONDS, UNKNOWN_SECONDS, Releaser
from services.registry.host.process import PluginProcess
from tests.services.registry.plugins import group, hosting, make_plugin, titles
from tieline.common.v1.failure_pb2 import FAILURE_KIND_NOT_PREPARED
from tieline.plugin.v1.instance_pb2 import InstanceContext
from tieline.plugin.v1.transform_pb2 import TransformDataRequest, TransformGroup
from tieline.registry.v1 import connections_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def connection(id_: str, applied: int = 1, state: State = State.ACTIVE) -> Connection:
    return Connection(
        tenant="acme",
        id=id_,
        instance=f"instance of {id_}",
        wanted=pb.Connection(plugin="plugins/it", settings=b"{}"),
        settings_version="1.0.0",
        revision=applied,
        applied_revision=applied,
        state=state,
        state_time=NOW,
        application=Application.APPLIED,
        application_failure=None,
        resolved_version="1.0.0",
        endpoints={},
        create_time=NOW,
        update_time=NOW,
    )


class Shown:
    """A picture that somebody else paints."""

    def __init__(self, *connections: Connection) -> None:
        self.show(*connections)

    def show(self, *connections: Connection) -> None:
        self.snapshot = Snapshot(1, {one.name: one for one in connections})


def held(process: PluginProcess) -> set[str]:
    assert process.launch is not None
    return set(process.launch.prepared)


async def knows(process: PluginProcess, instance: str) -> bool:
    """Whether the plugin itself still has it."""
    assert process.launch is not None
    context = InstanceContext(instance_id=instance, config_revision=1)
    request = TransformDataRequest(groups=[TransformGroup(context=context)])
    answer = await process.launch.stub.TransformData(request, timeout=10)
    return bool(answer.results[0].failure.kind != FAILURE_KIND_NOT_PREPARED)


async def test_instances_are_released_when_they_serve_nobody_and_not_before(tmp_path: Path) -> None:
    make_plugin(tmp_path, "it")
    stays, changes, ends, unknown = map(connection, ("stays", "changes", "ends", "unknown"))
    every = [one.served(1) for one in (stays, changes, ends, unknown)]
    stay, change, end, strange = every
    async with hosting(tmp_path) as host:
        broker, clock = Broker(host, FixedConnections(*every)), SteeredClock()
        for one in every:
            (result,) = await broker.transform([group(one, "x")])
            assert titles(result) == ["x"]
        process = host.processes["it"]
        assert held(process) == {one.instance for one in every}
        picture = Shown(stays, changes, ends)
        releaser = Releaser(host, broker, cast("Any", picture), clock)
        await releaser._look()
        assert held(process) == {one.instance for one in every}, "it may be new"
        picture.show(stays, connection("changes", applied=2), connection("ends", state=State.DELETING))
        await releaser._look()
        assert held(process) == {stay.instance, change.instance, strange.instance}, (
            "no call is under way for one that ends"
        )
        assert not await knows(process, end.instance)
        await clock.advance(UNKNOWN_SECONDS + 1)
        with broker.examining.about(strange):
            await releaser._look()
            assert strange.instance in held(process), "somebody is looking at it"
        await releaser._look()
        assert held(process) == {stay.instance, change.instance}, (
            "calls of the revision before may be under way"
        )
        await clock.advance(OVER_SECONDS)
        await releaser._look()
        assert held(process) == {stay.instance}
        assert not await knows(process, change.instance)
        assert await knows(process, stay.instance)
        await releaser.release(stay.connection)
        assert not held(process)
        (result,) = await broker.transform([group(stay, "again")])
        assert titles(result) == ["again"], "whoever is asked for after all is given again"
