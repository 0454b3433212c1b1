"""Inputs that end their plugin, or keep it busy for ever: found, told, and nobody else's trouble."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.clock import SteeredClock
from foundation.process.supervised import State
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections, Served
from services.registry.broker.suspects import FORGET_SECONDS, Suspects
from services.registry.broker.trials import Patience
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tests.services.registry.plugins import group, hosting, make_plugin, served, titles
from tests.services.registry.raw import calls, connected, make_raw
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.registry.v1.broker_pb2 import TransformDataResponse

TRANSIENT = FailureKind.FAILURE_KIND_TRANSIENT
INVALID_INPUT = FailureKind.FAILURE_KIND_INVALID_INPUT
QUICK = Patience(batch=3.0, alone=1.0)
Result = TransformDataResponse.Result


def failed(*results: Result) -> dict[str, Failure]:
    return {
        outcome.input_id: outcome.failure
        for result in results
        for outcome in result.outcomes
        if outcome.HasField("failure")
    }


def reasons(*results: Result) -> Counter[str]:
    return Counter(failure.reason for failure in failed(*results).values())


def deaths(process: PluginProcess) -> int:
    return sum(crash.report.exit is not None for crash in process.crashes)


@asynccontextmanager
async def brokering(
    below: Path, *connections: Served, patience: Patience | None = None
) -> AsyncIterator[tuple[Broker, Host]]:
    async with hosting(below) as host:
        yield Broker(host, FixedConnections(*connections), patience=patience), host


async def settled(
    broker: Broker, one: Served, payloads: Sequence[str], within: float = 30.0, calls_at_most: int = 20
) -> Result:
    """Sent again as the mapper does, until nothing of it has to wait; a slow machine may need more than one call."""
    for _ in range(calls_at_most):
        (result,) = await broker.transform([group(one, *payloads)], within)
        waits = [why for why in failed(result).values() if why.kind == TRANSIENT]
        if not waits and not result.HasField("failure"):
            return result
    raise AssertionError("it still waits")


async def test_one_poison_among_five_hundred_costs_three_crashes_and_nobody_else(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    connections = [served("one", number) for number in range(5)]
    async with brokering(tmp_path, *connections) as (broker, host):
        payloads = [[f"{number}-{index}" for index in range(100)] for number in range(5)]
        payloads[3][57] = "die"
        groups = [group(one, *some) for one, some in zip(connections, payloads, strict=True)]
        process = host.processes["one"]
        results = await broker.transform(groups)
        for _ in range(20):
            if not any(why.kind == TRANSIENT for why in failed(*results).values()):
                break
            results = await broker.transform(groups)
        [(guilty, failure)] = failed(*results).items()
        assert guilty == "instance-one-3/57"
        assert (failure.kind, failure.reason) == (INVALID_INPUT, "POISON")
        assert "SIGKILL" in failure.message, "the crash is in it"
        expected = sorted(word for some in payloads for word in some if word != "die")
        assert sorted(title for result in results for title in titles(result)) == expected
        assert deaths(process) == 3
        assert process.crashes_in_a_row == 0, "none of them counts"
        assert process.state is not State.FAILED
        assert len(broker._transforming._trials._suspects) == 1, "the innocent are forgotten"

        again = await broker.transform(groups)
        assert reasons(*again) == {"POISON": 1}
        assert deaths(process) == 3, "what is known needs no more proof"


async def test_five_poisons_and_no_innocent_are_five_verdicts_and_no_quarantine(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one", code=TALKING)
    one = served("one")
    async with brokering(tmp_path, one) as (broker, host):
        result = await settled(broker, one, [f"die {number}" for number in range(5)])
        assert reasons(result) == {"POISON": 5}
        process = host.processes["one"]
        assert process.crashes_in_a_row == 0
        assert deaths(process) <= 11


async def test_a_plugin_that_ends_whatever_it_is_asked_is_blamed_itself(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one", code=TALKING)
    many = [served("one", number) for number in range(6)]
    async with brokering(tmp_path, *many) as (broker, host):
        groups = [group(one, f"die {one.instance}") for one in many]
        process = host.processes["one"]
        for _ in range(30):
            results = await broker.transform(groups)
            assert not reasons(*results)["POISON"], "no input is buried for it"
            if process.state is State.FAILED:
                break
        assert process.state is State.FAILED, "it is in quarantine"


async def test_a_deadline_in_between_is_no_new_beginning(tmp_path: Path) -> None:
    """Feature: integrations, Property: what was found out stays found out, whatever the caller's patience."""
    make_plugin(tmp_path, "one")
    one = served("one")
    async with brokering(tmp_path, one) as (broker, host):
        await broker.transform([group(one, "warm")])
        payloads = ["a", "die", *(f"b{number}" for number in range(50))]
        result = await settled(broker, one, payloads, within=0.6, calls_at_most=200)
        assert reasons(result) == {"POISON": 1}
        assert len(titles(result)) == 51
        assert deaths(host.processes["one"]) == 3


async def test_batches_in_flight_together_are_suspected_together(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one", rest="[limits]\nbatch_items = 10\ncalls_in_flight = 4")
    one, two = served("one", 1), served("one", 2)
    async with brokering(tmp_path, one, two) as (broker, host):
        calls_ = [
            settled(broker, one, [*(f"a{number}" for number in range(40)), "die"]),
            settled(broker, two, [f"b{number}" for number in range(40)]),
        ]
        first, second = await asyncio.gather(*calls_)
        assert (reasons(first), len(titles(first))) == ({"POISON": 1}, 40)
        assert (reasons(second), len(titles(second))) == ({}, 40)
        assert deaths(host.processes["one"]) == 3


async def test_a_crash_from_outside_is_nobodys_fault(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    one = served("one")
    async with brokering(tmp_path, one) as (broker, host):
        await broker.transform([group(one, "warm")])
        process = host.processes["one"]
        call = asyncio.create_task(settled(broker, one, ["wait", "b", "c"]))
        while not process.calls_in_flight:
            await asyncio.sleep(0)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert sorted(titles(await call)) == ["b", "c", "wait"]


@pytest.mark.parametrize("word", ["stick", "hang"])
async def test_one_that_is_never_answered_fails_alone_and_for_good_the_third_time(
    tmp_path: Path, word: str
) -> None:
    """`stick` keeps the whole process from answering anything; `hang` only its own call."""
    below = make_raw(tmp_path)
    one = connected(1)
    async with brokering(below / "plugins", one, patience=QUICK) as (broker, host):
        process = host.processes["raw"]
        failure, seen = Failure(), []
        result = Result()
        for _ in range(20):
            (result,) = await broker.transform([group(one, "a", word, "b")])
            failure = failed(result).get("instance-raw-1/1", Failure())
            seen.append(failure.reason)
            if failure.kind == INVALID_INPUT:
                break
        assert (failure.kind, failure.reason) == (INVALID_INPUT, "TOO_SLOW")
        assert "3 times" in failure.message
        assert seen.count("TOO_SLOW") == 3
        assert [outcome.skipped.reason for outcome in result.outcomes].count("SEEN") == 2
        assert process.crashes_in_a_row == 0
        assert len([call for call in calls(below, "TransformData") if call["inputs"] > 1]) <= 4


async def test_a_call_that_fails_as_a_whole_fails_its_one_bad_input(tmp_path: Path) -> None:
    below = make_raw(tmp_path)
    one = connected(1)
    async with brokering(below / "plugins", one) as (broker, _):
        (result,) = await broker.transform([group(one, "a", "defect", "b")])
    assert {name: why.reason for name, why in failed(result).items()} == {"instance-raw-1/1": "DEFECT"}
    assert [outcome.skipped.reason for outcome in result.outcomes].count("SEEN") == 2


async def test_settings_that_end_the_process_are_refused_and_nobody_else_notices(tmp_path: Path) -> None:
    below = make_raw(tmp_path)
    deadly, fine = connected(1, "deadly"), connected(2)
    async with brokering(below / "plugins", deadly, fine) as (broker, host):
        answered: list[int] = []
        refusal = Failure()
        for _ in range(20):
            dead, alive = await broker.transform([group(deadly, "a", "b"), group(fine, "c")])
            answered.append(sum(outcome.HasField("skipped") for outcome in alive.outcomes))
            refusal = next(iter(failed(dead).values()), dead.failure)
            if refusal.kind != TRANSIENT:
                break
        assert (refusal.kind, refusal.reason) == (FailureKind.FAILURE_KIND_INVALID_CONFIG, "DEADLY_SETTINGS")
        assert sum(answered), "the neighbour was answered"
        assert deaths(host.processes["raw"]) <= 3
        again = await broker.initialize(deadly)
        assert again is not None
        assert again.reason == "DEADLY_SETTINGS", "nor are they applied"
        mended = dataclasses.replace(deadly, revision=2, settings=b"{}")
        assert await until_taken(broker, mended)


async def until_taken(broker: Broker, one: Served) -> bool:
    """However long this machine takes to start the process again."""
    for _ in range(10):
        if await broker.initialize(one) is None:
            return True
    return False


async def test_suspicion_is_bounded_forgotten_after_a_while_and_knows_an_input_by_its_content(
    tmp_path: Path,
) -> None:
    make_plugin(tmp_path, "one")
    one, other = served("one", 1), served("one", 2)
    async with hosting(tmp_path) as host:
        process = host.processes["one"]
    clock = SteeredClock()
    suspects = Suspects(clock, most=3)
    [*items] = group(one, "a", "b", "c", "d").inputs
    for item in items:
        suspects.accuse(process, one, item)
    assert len(suspects) == 3
    assert suspects.of(process, one, items[0]) is None, "the oldest made room"
    sent_again = group(one, "d").inputs[0]
    sent_again.received_at.FromSeconds(1)
    assert suspects.of(process, one, sent_again) is not None
    assert suspects.of(process, other, sent_again) is None, "another connection's settings may do better"
    await clock.advance(FORGET_SECONDS + 1)
    assert suspects.of(process, one, sent_again) is None


TALKING = """
import os, signal
from tieline.sdk import Category, Event, serve

class Plugin:
    def transform(self, instance, delivery):
        word = delivery.json().need_text("say")
        if word.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Event(type="{name}.said", title=word, external_key=word, category=Category.SYSTEM)

if __name__ == "__main__":
    {before}
    serve(Plugin())
"""
