"""Several replicas, each with plugin processes of its own: whoever is asked answers for all."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role
from foundation.process.testing import until
from tests.services.registry.plugins import CODE, make_plugin
from tests.services.registry.polled import make_polled
from tests.services.registry.test_rollouts import NEW
from tests.services.registry.test_sharing import Replica, two
from tieline.registry.v1 import catalogue_pb2_grpc, processes_pb2_grpc
from tieline.registry.v1 import processes_pb2 as pb
from tieline.registry.v1.catalogue_pb2 import GetPluginRequest

PLATFORM = Principal(Kind.USER, "users/root", frozenset({Role.PLATFORM_ADMIN}))


async def ask(replica: Replica, method: str, request: Any) -> Any:
    async with replica.running.as_(PLATFORM) as channel:
        stub = processes_pb2_grpc.ProcessServiceStub(channel)
        return await getattr(stub, method)(request, timeout=60.0)


async def processes(replica: Replica, plugin: str = "it") -> list[pb.Process]:
    answer = await ask(replica, "ListProcesses", pb.ListProcessesRequest(parent=f"plugins/{plugin}"))
    return list(answer.processes)


async def serving(replica: Replica) -> str:
    async with replica.running.as_(PLATFORM) as channel:
        stub = catalogue_pb2_grpc.CatalogueServiceStub(channel)
        return str((await stub.GetPlugin(GetPluginRequest(name="plugins/it"))).default_version)


@pytest.fixture
async def replicas(engines: Served, tmp_path: Path) -> AsyncIterator[Sequence[Replica]]:
    make_polled(tmp_path)
    make_plugin(tmp_path / "plugins", "it")
    async with two(engines, tmp_path) as (_, both):

        async def all_ready() -> bool:
            lists = [await processes(one) for one in both]
            return all(len(found) == 2 and _ready(found) for found in lists)

        await until(all_ready, 60)
        yield both


def _ready(found: Sequence[pb.Process]) -> bool:
    return all(one.state == pb.Process.STATE_READY for one in found)


def of(replica: Replica, found: Sequence[pb.Process]) -> pb.Process:
    (mine,) = (one for one in found if one.pid in replica.plugins())
    return mine


@pytest.mark.timeout(300)
async def test_any_replica_answers_for_all_and_has_others_do_what_is_theirs(
    replicas: Sequence[Replica],
) -> None:
    first, second = replicas
    seen, other = await processes(first), await processes(second)
    assert [one.name for one in seen] == [one.name for one in other]
    assert len({one.host for one in seen}) == 2
    theirs = of(second, seen)
    assert (await ask(first, "GetProcess", pb.GetProcessRequest(name=theirs.name))).pid == theirs.pid
    short = theirs.name.rpartition("-")[0]
    assert (await ask(first, "GetProcess", pb.GetProcessRequest(name=short))).name == of(first, seen).name

    request = pb.RestartProcessRequest(name=theirs.name, request_id="3d1f7e6e-8a55-4b41-9d8b-9b6a50a53ab5")
    restarted = await ask(first, "RestartProcess", request)
    assert (restarted.name, restarted.starts) == (theirs.name, 2)
    again = await ask(first, "RestartProcess", request)
    assert again.starts == 2, "the same request again does nothing more"
    assert restarted.pid != theirs.pid
    said = first.running.audit.said
    assert ("plugin.restart", theirs.name, "INTENT") in said

    for _ in range(5):
        alive = of(second, await processes(second))
        os.kill(alive.pid, signal.SIGKILL)
        await until(partial(_moved, second, theirs.name, alive.pid), 60)
    await until(lambda: _is(first, theirs.name, pb.Process.STATE_QUARANTINED), 60)
    await ask(first, "ReleaseProcess", pb.ReleaseProcessRequest(name=theirs.name))
    await until(lambda: _is(first, theirs.name, pb.Process.STATE_READY), 60)
    with pytest.raises(Problem) as missing:
        await ask(first, "RestartProcess", pb.RestartProcessRequest(name="plugins/it/processes/nobody"))
    assert missing.value.code is Code.NOT_FOUND


async def _is(replica: Replica, name: str, state: pb.Process.State.ValueType) -> bool:
    found: pb.Process = await ask(replica, "GetProcess", pb.GetProcessRequest(name=name))
    return found.state == state


async def _moved(replica: Replica, name: str, pid: int) -> bool:
    found: pb.Process = await ask(replica, "GetProcess", pb.GetProcessRequest(name=name))
    again = found.state == pb.Process.STATE_READY and found.pid not in {0, pid}
    return again or found.state == pb.Process.STATE_QUARANTINED


@pytest.mark.timeout(300)
async def test_a_replica_that_is_gone_or_stands_still_is_nobodys_answer(
    replicas: Sequence[Replica],
) -> None:
    first, second = replicas
    theirs = of(second, await processes(first))
    os.kill(second.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Problem) as silent:
            await ask(first, "RestartProcess", pb.RestartProcessRequest(name=theirs.name))
        assert silent.value.code is Code.STATE_REFUSES
        assert "nothing was done" in silent.value.sentence
    finally:
        os.kill(second.process.pid, signal.SIGCONT)
    await until(lambda: _count(first, 2), 60)
    second.kill()
    await until(lambda: _count(first, 1), 60)
    assert of(first, await processes(first)).state == pb.Process.STATE_READY


async def _count(replica: Replica, count: int) -> bool:
    return len(await processes(replica)) == count


def observation(seconds: int) -> Duration:
    duration = Duration()
    duration.FromSeconds(seconds)
    return duration


@pytest.mark.timeout(300)
async def test_a_shift_is_followed_by_all_and_so_is_its_way_back(
    replicas: Sequence[Replica], tmp_path: Path
) -> None:
    first, second = replicas
    make_plugin(tmp_path / "later", "it", version="2.0.0", folder="it-2", code=NEW)
    shutil.move(tmp_path / "later" / "it-2", tmp_path / "plugins" / "it-2")

    async def known() -> bool:
        found = []
        for one in replicas:
            async with one.running.as_(PLATFORM) as channel:
                stub = catalogue_pb2_grpc.CatalogueServiceStub(channel)
                found.append(len((await stub.GetPlugin(GetPluginRequest(name="plugins/it"))).versions))
        return found == [2, 2]

    await until(known, 60)
    upgrade = pb.UpgradePluginRequest(name="plugins/it", to_version="2.0.0", observation=observation(3600))
    begun = await ask(first, "UpgradePlugin", upgrade)
    assert (await ask(second, "UpgradePlugin", upgrade)).name == begun.name, "the same is the same anywhere"
    await until(lambda: _serve(replicas, "2.0.0"), 90)
    seen = await ask(second, "GetRollout", pb.GetRolloutRequest(name=begun.name))
    assert (seen.state, seen.from_version) == (pb.Rollout.STATE_OBSERVING, "1.0.0")
    with pytest.raises(Problem) as refused:
        await ask(second, "UpgradePlugin", pb.UpgradePluginRequest(name="plugins/it", to_version="1.0.0"))
    assert refused.value.code is Code.STATE_REFUSES

    cancelled = await ask(second, "CancelRollout", pb.CancelRolloutRequest(name=begun.name))
    assert cancelled.state == pb.Rollout.STATE_ROLLED_BACK
    await until(lambda: _serve(replicas, "1.0.0"), 90)
    with pytest.raises(Problem) as over:
        await ask(second, "CancelRollout", pb.CancelRolloutRequest(name=begun.name))
    assert over.value.code is Code.STATE_REFUSES
    actions = [action for action, _, outcome in first.running.audit.said if outcome == "INTENT"]
    assert {"plugin.upgrade", "plugin.rollout.cancel"} <= set(actions)
    assert CODE != NEW


async def _serve(replicas: Sequence[Replica], version: str) -> bool:
    return [await serving(one) for one in replicas] == [version] * len(replicas)


@pytest.mark.timeout(300)
async def test_a_rollout_whose_replica_died_is_nobodys_and_another_may_begin(
    replicas: Sequence[Replica], tmp_path: Path
) -> None:
    first, second = replicas
    make_plugin(tmp_path / "later", "it", version="2.0.0", folder="it-2", code=NEW)
    shutil.move(tmp_path / "later" / "it-2", tmp_path / "plugins" / "it-2")
    upgrade = pb.UpgradePluginRequest(name="plugins/it", to_version="2.0.0", observation=observation(3600))

    async def begin() -> str:
        try:
            return str((await ask(second, "UpgradePlugin", upgrade)).name)
        except Problem as problem:
            if problem.code not in {Code.NOT_FOUND, Code.STATE_REFUSES}:
                raise
            return ""

    names = list[str]()

    async def begun() -> bool:
        names.append(await begin())
        return bool(names[-1])

    await until(begun, 60)
    await until(lambda: _serve(replicas, "2.0.0"), 90)
    second.kill()

    async def told() -> bool:
        found = await ask(first, "GetRollout", pb.GetRolloutRequest(name=names[-1]))
        return str(found.failure.reason) == "REPLICA_GONE"

    await until(told, 60)
    back = pb.UpgradePluginRequest(name="plugins/it", to_version="1.0.0", observation=observation(0))
    rollout = await ask(first, "UpgradePlugin", back)

    async def done() -> bool:
        found = await ask(first, "GetRollout", pb.GetRolloutRequest(name=rollout.name))
        return bool(found.state == pb.Rollout.STATE_DONE)

    await until(done, 90)
    assert await serving(first) == "1.0.0"
    await asyncio.gather(*(processes(first) for _ in range(3)))
