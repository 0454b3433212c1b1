"""The broker against real plugin processes: what it prepares, what it repairs, and what stays whose trouble."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.host.host import Host
from services.registry.host.prepared import Prepared
from tests.services.registry.plugins import group, hosting, make_plugin, served, titles
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.event.v1.content_pb2 import Severity

TRANSIENT = FailureKind.FAILURE_KIND_TRANSIENT
INTERNAL = FailureKind.FAILURE_KIND_INTERNAL
INVALID_INPUT = FailureKind.FAILURE_KIND_INVALID_INPUT
NOT_FOUND = FailureKind.FAILURE_KIND_NOT_FOUND


async def ready(host: Host, name: str) -> int:
    process = host.processes[name]
    await until(lambda: process.state is State.READY)
    assert process.pid is not None
    return process.pid


async def test_many_connections_of_two_plugins_share_a_call(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    make_plugin(tmp_path, "two")
    first, second = served("one", 1, b'{"word": "!"}'), served("one", 2)
    other = served("two")
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(first, second, other))
        results = await broker.transform(
            [group(first, "a", "b"), group(other, "c"), group(second, "d"), group(first, "e")]
        )
    assert [list(titles(result)) for result in results] == [["a!", "b!"], ["c"], ["d"], ["e!"]]
    assert [result.revision for result in results] == [1, 1, 1, 1]
    assert {result.plugin_version for result in results} == {"1.0.0"}
    drafts = [draft for result in results for outcome in result.outcomes for draft in outcome.events.drafts]
    assert {draft.severity for draft in drafts} == {Severity.SEVERITY_WARNING}, "the manifest's default"
    assert json.loads(drafts[0].attributes)["instance"] == "instance-one-1"


async def test_one_bad_input_fails_alone_and_says_nothing_of_itself(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    one = served("one")
    async with hosting(tmp_path) as host:
        payloads: tuple[str | bytes, ...] = (
            "a",
            b"\xff",
            "raise",
            "skip",
            b"[" * 100_000,
            b"{}",
            "other",
            "z",
        )
        (result,) = await Broker(host, FixedConnections(one)).transform([group(one, *payloads)])
    said = [
        (outcome.WhichOneof("outcome"), outcome.failure.kind, outcome.failure.reason)
        for outcome in result.outcomes
    ]
    assert said == [
        ("events", 0, ""),
        ("failure", INVALID_INPUT, "NOT_JSON"),
        ("failure", INTERNAL, "DEFECT"),
        ("skipped", 0, ""),
        ("failure", INVALID_INPUT, "NOT_JSON"),
        ("failure", INVALID_INPUT, "MALFORMED"),
        ("failure", INTERNAL, "UNDECLARED_TYPE"),
        ("events", 0, ""),
    ]
    assert b"secret-canary" not in result.SerializeToString()


async def test_a_plugin_killed_between_two_calls_serves_again(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    one = served("one", settings=b'{"word": "?"}')
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(one))
        await broker.transform([group(one, "warm")])
        for _ in range(3):
            pid = await ready(host, "one")
            os.kill(pid, signal.SIGKILL)
            while True:
                (result,) = await broker.transform([group(one, "again")])
                if not result.HasField("failure"):
                    break
                assert result.failure.kind == TRANSIENT
                assert not result.outcomes
                await asyncio.sleep(0.01)
            assert titles(result) == ["again?"], "its settings came back with it"
            assert host.processes["one"].pid != pid


async def test_one_deadly_input_is_found_and_nobody_else_notices(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    make_plugin(tmp_path, "two")
    deadly, neighbour, other = served("one", 1), served("one", 2), served("two")
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(deadly, neighbour, other))
        await broker.transform([group(deadly, "warm"), group(other, "warm")])
        untouched = host.processes["two"].pid
        results = await broker.transform(
            [group(neighbour, "a", "b"), group(deadly, "x", "die", "y"), group(other, "fine")]
        )
        assert [list(titles(result)) for result in results] == [["a", "b"], ["x", "y"], ["fine"]]
        (failure,) = [one.failure for one in results[1].outcomes if one.HasField("failure")]
        assert (failure.kind, failure.reason) == (INVALID_INPUT, "POISON")
        assert "SIGKILL" in failure.message
        assert host.processes["two"].pid == untouched


async def test_a_plugin_that_forgot_an_instance_is_given_it_again(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    one = served("one")
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(one))
        await broker.transform([group(one, "a")])
        async with host.processes["one"].call(60.0) as launch:
            launch.prepared[one.instance] = Prepared(7)  # as if it held another revision, and
            launch.prepared["instance-one-2"] = Prepared(1)  # one that it does not hold at all
        two = served("one", 2)
        results = await Broker(host, FixedConnections(one, two)).transform([group(one, "b"), group(two, "c")])
    assert [list(titles(result)) for result in results] == [["b"], ["c"]]


async def test_what_is_not_there_says_so_for_its_own_group(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    one, stranger, absent = served("one"), served("one", 9), served("gone")
    pending = served("one", 3, revision=0)
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(one, absent, pending))
        results = await broker.transform(
            [group(stranger, "a"), group(one, "b"), group(absent, "c"), group(pending, "d")]
        )
    assert [(result.failure.kind, result.failure.reason) for result in results] == [
        (NOT_FOUND, "CONNECTION_UNKNOWN"),
        (0, ""),
        (TRANSIENT, "PLUGIN_ABSENT"),
        (TRANSIENT, "NOT_APPLIED"),
    ]


async def test_large_groups_are_cut_to_the_plugins_limits(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one", rest="[limits]\nbatch_items = 7\nbatch_bytes = 2000\ncalls_in_flight = 2")
    one, two = served("one", 1), served("one", 2)
    large = json.dumps({"say": "L", "pad": "x" * 5000}).encode()
    async with hosting(tmp_path) as host:
        results = await Broker(host, FixedConnections(one, two)).transform(
            [group(one, *[f"n{number}" for number in range(40)]), group(two, "a", large, "b")]
        )
    assert sorted(titles(results[0])) == sorted(f"n{number}" for number in range(40))
    assert sorted(titles(results[1])) == ["L", "a", "b"]
    assert len({outcome.input_id for outcome in results[0].outcomes}) == 40


async def test_settings_that_the_plugin_refuses_are_its_own_failure(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    good, bad = served("one", 1), served("one", 2, b'{"word": "forbidden"}')
    async with hosting(tmp_path) as host:
        broker = Broker(host, FixedConnections(good, bad))
        failure = await broker.initialize(bad)
        assert failure is not None
        assert (failure.kind, failure.message) == (
            FailureKind.FAILURE_KIND_INVALID_CONFIG,
            "that word is forbidden",
        )
        assert await broker.initialize(good) is None
        results = await broker.transform([group(bad, "a"), group(good, "b")])
    assert results[0].failure.kind == FailureKind.FAILURE_KIND_INVALID_CONFIG
    assert titles(results[1]) == ["b"]


@pytest.mark.parametrize("calls", [1, 3])
async def test_no_more_calls_are_in_flight_than_the_plugin_takes(tmp_path: Path, calls: int) -> None:
    make_plugin(tmp_path, "one", rest=f"[limits]\ncalls_in_flight = {calls}\nbatch_items = 1")
    async with hosting(tmp_path) as host:
        process = host.processes["one"]
        held = [process.call(60.0) for _ in range(calls)]
        for one in held:
            await one.__aenter__()
        extra = asyncio.create_task(process.call(60.0).__aenter__())
        await asyncio.sleep(0)
        assert not extra.done()
        for one in held:
            await one.__aexit__(None, None, None)
        await extra
