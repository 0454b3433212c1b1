"""Lookup: questions to many connections, answered from what is known, and asked once where several want the same.

What an answer depends on is its name in the memory: instance, revision, version of the plugin, and the question
itself. So nothing has to be forgotten when one of these changes: nobody asks under the old name any more.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.clock import Clock
from services.registry.broker import failures
from services.registry.broker.answers import Answers
from services.registry.broker.calling import Calls
from services.registry.broker.declared import API_SLOT, demand, refused, the
from services.registry.broker.documents import Unfit, canonical
from services.registry.broker.failures import CallFailed
from services.registry.broker.mending import MARGIN_SECONDS
from services.registry.broker.operations import Operation, Reach
from services.registry.broker.serving import Served
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.plugin.v1.lookup_pb2 import (
    LookupAnswer,
    LookupGroup,
    LookupGroupResult,
    LookupQuery,
    LookupRequest,
)
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_LOOKUP, LookupType, Manifest
from tieline.registry.v1 import broker_pb2

Group = broker_pb2.LookupRequest.Group
Result = broker_pb2.LookupResponse.Result

QUERIES = 100
CACHE_SECONDS = 3600.0
LONGEST_SECONDS = 30 * 86_400.0
ABSENT_SECONDS = 60.0
"""How long nothing stays nothing, where the plugin does not say."""
ATTRIBUTE_BYTES = 64 * 1024
_LATE = frozenset({"TOO_SLOW", "PLUGIN_BUSY", "NOT_READY"})
"""Whoever asked ran out of time; who waits for the same answer may have more of it."""


@dataclass(slots=True)
class Question:
    """One that can be asked, and what came of it."""

    place: int
    """Among those of its group."""
    query: LookupQuery
    lookup: LookupType
    fingerprint: bytes
    answer: LookupAnswer | None = None


class Looking:
    def __init__(self, calls: Calls, clock: Clock, answers: Answers | None = None) -> None:
        self._calls, self._clock = calls, clock
        self._answers = answers or Answers(clock)

    async def look(self, groups: Sequence[Group], within: float) -> list[Result]:
        """One result for each group, in order; what one comes to, no other hears of."""
        ends = self._clock.monotonic() + within - min(MARGIN_SECONDS, within / 10)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._group(group, ends)) for group in groups]
        return [task.result() for task in asked]

    async def _group(self, group: Group, ends: float) -> Result:
        try:
            served, process = await self._calls.find(group.ref)
            demand(CAPABILITY_LOOKUP, process.manifest)
            if len(group.queries) > QUERIES:
                raise refused("QUERIES_TOO_MANY", f"there are more than {QUERIES} questions in a group")
        except CallFailed as failed:
            return Result(failure=failed.failure)
        told: dict[int, LookupAnswer] = {}
        questions: list[Question] = []
        for place, query in enumerate(group.queries):
            try:
                questions.append(_question(place, query, served, process.manifest))
            except CallFailed as failed:
                told[place] = LookupAnswer(failure=failed.failure)
        await self._answer(group.ref, questions, ends)
        told |= {one.place: one.answer for one in questions if one.answer is not None}
        result = Result(plugin_version=process.manifest.version)
        for place, query in enumerate(group.queries):
            told[place].query_id = query.query_id
            result.answers.append(told[place])
        return result

    async def _answer(self, ref: broker_pb2.ConnectionRef, questions: list[Question], ends: float) -> None:
        """Every question has an answer afterwards."""
        open_ = questions
        while open_:
            for one in open_:
                one.answer = self._answers.find(one.fingerprint)
            ours: dict[bytes, list[Question]] = defaultdict(list)
            theirs: list[Question] = []
            for one in open_:
                if one.answer is not None:
                    continue
                if one.fingerprint in ours or one.fingerprint not in self._answers.under_way:
                    ours[one.fingerprint].append(one)
                else:
                    theirs.append(one)
            await self._lead(ref, ours, ends)
            await self._follow(theirs, ends)
            open_ = [one for one in open_ if one.answer is None]

    async def _lead(
        self, ref: broker_pb2.ConnectionRef, ours: dict[bytes, list[Question]], ends: float
    ) -> None:
        if not ours:
            return
        loop = asyncio.get_running_loop()
        flights = {fingerprint: loop.create_future() for fingerprint in ours}
        self._answers.under_way |= flights
        try:
            by_lookup: dict[str, list[Question]] = defaultdict(list)
            for alike in ours.values():
                by_lookup[alike[0].lookup.name].append(alike[0])
            async with asyncio.TaskGroup() as tasks:
                for asked in by_lookup.values():
                    tasks.create_task(self._ask(ref, asked, ends))
            for alike in ours.values():
                answer = alike[0].answer
                for one in alike[1:]:
                    one.answer = _copy(answer)
                if answer is not None and answer.failure.reason not in _LATE:
                    flights[alike[0].fingerprint].set_result(_copy(answer))
        finally:
            for fingerprint, flight in flights.items():
                del self._answers.under_way[fingerprint]
                if not flight.done():
                    flight.set_result(None)

    async def _follow(self, theirs: Sequence[Question], ends: float) -> None:
        for one in theirs:
            flight = self._answers.under_way.get(one.fingerprint)
            if flight is None:
                continue  # it has landed: the next round finds what came of it
            try:
                async with asyncio.timeout(max(0.0, ends - self._clock.monotonic())):
                    one.answer = _copy(await asyncio.shield(flight))
            except TimeoutError:
                why = "the same question is on its way, and was not answered in time"
                one.answer = LookupAnswer(failure=failures.transient("TOO_SLOW", why))

    async def _ask(self, ref: broker_pb2.ConnectionRef, asked: Sequence[Question], ends: float) -> None:
        """Questions of one lookup to one connection."""
        lookup = asked[0].lookup
        operation = Operation(name=f"Lookup/{lookup.name}", slot=lookup.slot or API_SLOT)
        group = LookupGroup(queries=map(_numbered, range(len(asked)), asked))

        async def ask(reach: Reach) -> LookupGroupResult:
            group.context.CopyFrom(reach.context)
            answer = await reach.stub.Lookup(LookupRequest(groups=[group]), **reach.options)
            if len(answer.results) != 1 or answer.results[0].instance_id != reach.context.instance_id:
                why = "the plugin's answer does not fit the one group that it was asked"
                raise CallFailed(failures.internal("ANSWER_MALFORMED", why))
            if answer.results[0].HasField("failure"):
                raise CallFailed(answer.results[0].failure)
            return answer.results[0]

        try:
            result = await self._calls.unary(ref, operation, ask, max(0.0, ends - self._clock.monotonic()))
        except CallFailed as failed:
            for one in asked:
                one.answer = LookupAnswer(failure=failed.failure)
            return
        told = _by_number(result.message.answers)
        for number, one in enumerate(asked):
            one.answer = _checked(told.get(str(number)))
            self._answers.keep(one.fingerprint, one.answer, _seconds(one.answer, lookup))


def _question(place: int, query: LookupQuery, served: Served, manifest: Manifest) -> Question:
    lookup = the("lookup", manifest.lookups, query.lookup, manifest)
    if lookup.entity_kinds and query.entity.kind not in lookup.entity_kinds:
        raise refused("ENTITY_UNFIT", f"{lookup.name} cannot be asked about {query.entity.kind[:64]!r}")
    try:
        arguments = canonical(query.arguments, lookup.input_schema)
    except Unfit as unfit:
        raise refused("ARGUMENTS_INVALID", str(unfit)) from None
    bare = LookupQuery()
    bare.CopyFrom(query)
    bare.query_id, bare.arguments = "", arguments
    told = f"{served.instance}\n{served.revision}\n{manifest.name}\n{manifest.version}\n".encode()
    digest = hashlib.sha256(told + bare.SerializeToString(deterministic=True)).digest()
    return Question(place, bare, lookup, digest)


def _numbered(number: int, question: Question) -> LookupQuery:
    """Under a name of ours: callers may call two questions alike."""
    query = LookupQuery()
    query.CopyFrom(question.query)
    query.query_id = str(number)
    return query


def _by_number(answers: Sequence[LookupAnswer]) -> dict[str, LookupAnswer | None]:
    """Two answers to one question are as good as none: nobody can say which was meant."""
    told: dict[str, LookupAnswer | None] = {}
    for answer in answers:
        told[answer.query_id] = None if answer.query_id in told else answer
    return told


def _checked(answer: LookupAnswer | None) -> LookupAnswer:
    kind = None if answer is None else answer.WhichOneof("answer")
    if answer is None or kind is None:
        why = "the plugin said nothing to this question, or two things"
        return LookupAnswer(failure=failures.internal("NO_ANSWER", why))
    if kind == "found" and (fault := _fault(answer.found.attributes)):
        return LookupAnswer(failure=failures.internal("ANSWER_INVALID", f"attributes: {fault}"))
    return answer


def _fault(attributes: bytes) -> str:
    try:
        canonical(attributes, b"", ATTRIBUTE_BYTES)
    except Unfit as unfit:
        return str(unfit)
    return ""


def _seconds(answer: LookupAnswer, lookup: LookupType) -> float:
    """How long it may be used again. `cache_for` of zero says: not at all."""
    absent = answer.failure.kind == FailureKind.FAILURE_KIND_NOT_FOUND
    if answer.HasField("failure") and not absent:
        return 0.0
    if answer.HasField("cache_for"):
        return min(LONGEST_SECONDS, answer.cache_for.ToTimedelta().total_seconds())
    if absent:
        return ABSENT_SECONDS
    if lookup.HasField("cache_for"):
        return min(LONGEST_SECONDS, lookup.cache_for.ToTimedelta().total_seconds())
    return CACHE_SECONDS


def _copy(answer: LookupAnswer | None) -> LookupAnswer | None:
    if answer is None:
        return None
    copied = LookupAnswer()
    copied.CopyFrom(answer)
    return copied
