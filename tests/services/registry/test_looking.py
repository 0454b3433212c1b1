"""Questions: answered from memory where they may be, asked once where several want the same, alone in their trouble."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundation.clock import SteeredClock
from foundation.process.testing import until
from services.registry.broker.answers import OVERHEAD, Answers
from services.registry.broker.broker import Broker
from services.registry.broker.looking import Group, Result
from services.registry.broker.serving import FixedConnections, Served
from tests.services.registry.asked import asking, connected
from tests.services.registry.raw import calls, ref
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.plugin.v1.lookup_pb2 import LookupAnswer, LookupQuery

ONE, TWO = connected(1), connected(2)


def question(about: str, arguments: bytes = b"", lookup: str = "commit", kind: str = "commit") -> LookupQuery:
    query = LookupQuery(query_id=about, lookup=lookup, arguments=arguments)
    query.entity.kind, query.entity.id = kind, about
    return query


def group(one: Served, *about: str) -> Group:
    return Group(ref=ref(one), queries=map(question, about))


def told(result: Result) -> list[str]:
    return [
        answer.found.attributes.decode() if answer.HasField("found") else answer.failure.reason
        for answer in result.answers
    ]


def asked(below: Path) -> int:
    return sum(len(call["ids"]) for call in calls(below, "Lookup"))


async def test_a_question_that_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE, TWO) as (broker, host):
        (first,) = await broker.looking.look([group(ONE, "a", "b")], 20.0)
        assert told(first) == ['{"about": "a"}', '{"about": "b"}']
        assert first.plugin_version == "1.0.0"
        results = await broker.looking.look([group(ONE, "b", "a", "c"), group(TWO, "a")], 20.0)
        assert [told(one)[-1] for one in results] == ['{"about": "c"}', '{"about": "a"}']
        assert [answer.query_id for answer in results[0].answers] == ["b", "a", "c"]
        assert asked(tmp_path) == 4, "each connection has answers of its own"
        revised = Broker(host, FixedConnections(connected(1, revision=2)))
        revised.looking._answers = broker.looking._answers
        await revised.looking.look([group(ONE, "a")], 20.0)
    assert asked(tmp_path) == 5


async def test_the_same_question_is_one_question_however_it_is_written(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        spellings = [b'{"deep": true}', b'{ "deep" :true }']
        queries = [question("a", spelling) for spelling in spellings]
        (result,) = await broker.looking.look([Group(ref=ref(ONE), queries=queries)], 20.0)
    assert told(result) == ['{"about": "a"}'] * 2
    assert asked(tmp_path) == 1


async def test_who_asks_while_it_is_asked_waits_for_the_same_answer(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        results = await asyncio.gather(
            *(broker.looking.look([group(ONE, "slow", "fresh")], 20.0) for _ in range(10))
        )
    assert {told(result)[0] for (result,) in results} == {'{"about": "slow"}'}
    slow = [call for call in calls(tmp_path, "Lookup") if "slow" in call["ids"]]
    assert len(slow) == 1


async def test_who_gives_up_leaves_the_question_to_who_waits(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        await broker.looking.look([group(ONE, "warm")], 20.0)
        first = asyncio.create_task(broker.looking.look([group(ONE, "hang")], 60.0))
        await until(lambda: len(calls(tmp_path, "Lookup")) == 2)
        second = asyncio.create_task(broker.looking.look([group(ONE, "hang")], 60.0))
        first.cancel()
        await until(lambda: calls(tmp_path, "cancelled"))
        await until(lambda: len(calls(tmp_path, "Lookup")) == 3)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert not broker.looking._answers.under_way


async def test_what_is_wrong_with_one_question_is_nobody_elses_affair(tmp_path: Path) -> None:
    stranger = connected(9)
    async with asking(tmp_path, ONE, TWO) as (broker, _):
        odd = Group(
            ref=ref(ONE),
            queries=[
                question("a", b'{"deep": 7}'),
                question("b", kind="tree"),
                question("c", lookup="unheard-of"),
                *map(question, ("broken", "silent", "garbled", "absent", "d")),
            ],
        )
        results = await broker.looking.look([odd, group(stranger, "a"), group(TWO, "a")], 20.0)
        assert told(results[0]) == [
            "ARGUMENTS_INVALID",
            "ENTITY_UNFIT",
            "LOOKUP_UNKNOWN",
            "",
            "NO_ANSWER",
            "ANSWER_INVALID",
            "",
            '{"about": "d"}',
        ]
        assert results[1].failure.reason == "CONNECTION_UNKNOWN"
        assert told(results[2]) == ['{"about": "a"}']
        before = asked(tmp_path)
        await broker.looking.look([group(ONE, "absent", "d")], 20.0)
        assert asked(tmp_path) == before, "that there is nothing is an answer"
        await broker.looking.look([group(ONE, "broken", "silent", "garbled")], 20.0)
        assert asked(tmp_path) == before + 3, "a failure is none"


async def test_a_plugin_that_says_so_is_asked_every_time(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _):
        for _ in range(3):
            await broker.looking.look([group(ONE, "fresh")], 20.0)
    assert asked(tmp_path) == 3


async def test_a_plugin_that_dies_of_a_question_fails_that_group_alone(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE, TWO) as (broker, _):
        await broker.looking.look([group(TWO, "a")], 20.0)
        dead, fine = await broker.looking.look([group(ONE, "die"), group(TWO, "a")], 20.0)
        assert told(dead) == ["PLUGIN_CRASHED"]
        assert told(fine) == ['{"about": "a"}']
        (late,) = await broker.looking.look([group(ONE, "hang")], 2.0)
        assert late.answers[0].failure.kind == FailureKind.FAILURE_KIND_TRANSIENT


async def test_who_does_not_say_that_it_can_is_not_asked(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE, capabilities='"release"') as (broker, _):
        (result,) = await broker.looking.look([group(ONE, "a")], 20.0)
    assert result.failure.kind == FailureKind.FAILURE_KIND_UNSUPPORTED


async def test_answers_are_kept_within_bounds_and_as_long_as_they_may() -> None:
    clock = SteeredClock()
    answers = Answers(clock, entries=3, size=2 * OVERHEAD + 2000)
    small, large = LookupAnswer(), LookupAnswer()
    small.found.attributes, large.found.attributes = b"{}", b"x" * 1500
    for name in (b"a", b"b", b"c", b"d"):
        answers.keep(name, small, 10.0)
    assert answers.find(b"a") is None, "four are too many"
    assert answers.find(b"b") is not None
    answers.keep(b"e", large, 10.0)
    kept = [name for name in (b"b", b"c", b"d", b"e") if answers.find(name)]
    assert kept == [b"b", b"d", b"e"], "what was asked for longest ago made room"
    answers.keep(b"f", large, 0.0)
    assert answers.find(b"f") is None
    await clock.advance(11.0)
    assert answers.find(b"e") is None
    assert len(answers) == 2
