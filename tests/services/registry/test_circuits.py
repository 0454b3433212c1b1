"""Circuits, throttles and turns by themselves: pure, or on a clock that the test turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundation.clock import SteeredClock
from services.registry.broker.circuits import Circuit, Circuits, Policy, Result, State, Ticket, result_of
from services.registry.broker.throttles import LONGEST_SECONDS, Throttles
from services.registry.broker.turns import MANY, Turns
from tests.services.registry.plugins import served
from tieline.common.v1.failure_pb2 import Failure, FailureKind, ThrottleScope

POLICY = Policy(failures=3, pause=1.0, longest=8.0)
GOOD, BAD, UNTOLD = Result.GOOD, Result.BAD, Result.UNTOLD


@dataclass
class Model:
    """What a circuit promises, told in another way: it looks only at what callers could see."""

    now: float = 0.0
    out: list[Ticket] = field(default_factory=list)
    trial: Ticket | None = None
    row: int = 0
    """Failures in a row of calls that were admitted while it was closed and settled before it opened."""
    closed: bool = True


steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.just(0.0)),
        st.tuples(st.just("pass"), st.sampled_from([0.1, 0.9, 1.0, 3.0, 10.0])),
        st.tuples(st.sampled_from([GOOD, BAD, UNTOLD]), st.integers(0, 50)),
    ),
    max_size=80,
)


STRAGGLER: list[tuple[object, float]] = [
    *[("call", 0.0)] * 4,
    *[(BAD, 0)] * 3,
    ("pass", 10.0),
    ("call", 0.0),
    (BAD, 0),
]
"""A call from before it opened ends while the trial is out."""


@given(steps)
@example(STRAGGLER)
@settings(max_examples=300, deadline=None)
def test_a_circuit_keeps_its_promises_whatever_happens(script: list[tuple[object, float]]) -> None:
    """Feature: integrations, Property 9 (circuit breaker): one trial at a time, pauses between, no memory of the dead."""
    circuit, model = Circuit(POLICY), Model()
    for what, much in script:
        if what == "pass":
            model.now += much
        elif what == "call":
            before = circuit.state
            answer = circuit.admit(model.now)
            if isinstance(answer, float):
                assert not model.closed, "closed means that everybody may go"
                assert 0 < answer <= POLICY.longest, "it says when to ask again"
                assert circuit.state is before, "asking changes nothing"
            else:
                assert model.closed is not answer.trial
                if answer.trial:
                    assert model.trial is None, "exactly one trial at a time"
                    model.trial = answer
                model.out.append(answer)
        elif model.out:
            ticket = model.out.pop(int(much) % len(model.out))
            assert isinstance(what, Result)
            settle(circuit, model, ticket, what)
        assert (circuit.state is State.CLOSED) is model.closed
        assert (circuit.state is State.HALF_OPEN) is (model.trial is not None)


def settle(circuit: Circuit, model: Model, ticket: Ticket, result: Result) -> None:
    era = circuit._era
    circuit.settle(ticket, result, model.now)
    if ticket == model.trial:
        model.trial = None
        model.closed, model.row = result is GOOD, 0
    elif model.closed and ticket.era == era:
        model.row = {GOOD: 0, BAD: model.row + 1, UNTOLD: model.row}[result]
        model.closed = model.row < POLICY.failures


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    circuit, now, pauses = Circuit(POLICY), 0.0, []
    for _ in range(POLICY.failures):
        ticket = circuit.admit(now)
        assert isinstance(ticket, Ticket)
        circuit.settle(ticket, BAD, now)
    for _ in range(6):
        wait = circuit.admit(now)
        assert isinstance(wait, float)
        pauses.append(wait)
        now += wait
        trial = circuit.admit(now)
        assert isinstance(trial, Ticket)
        circuit.settle(trial, BAD, now)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_trial_that_says_nothing_gives_way_to_the_next_at_once() -> None:
    circuit = Circuit(Policy(failures=1))
    circuit.settle(Ticket(0), BAD, 0.0)
    trial = circuit.admit(5.0)
    assert isinstance(trial, Ticket)
    circuit.settle(trial, UNTOLD, 5.0)
    assert isinstance(circuit.admit(5.0), Ticket)


def test_circuits_remember_only_trouble_and_not_without_bound() -> None:
    circuits = Circuits(SteeredClock(), POLICY, most=10)
    for number in range(50):
        for result in (GOOD, BAD) if number % 2 else (GOOD,):
            ticket = circuits.admit(number)
            assert isinstance(ticket, Ticket)
            circuits.settle(number, ticket, result)
    assert len(circuits) == 10
    ticket = circuits.admit(49)
    assert isinstance(ticket, Ticket)
    circuits.settle(49, ticket, GOOD)
    assert len(circuits) == 9, "what works again is forgotten"


@pytest.mark.parametrize("kind", FailureKind.values())
def test_only_trouble_of_the_way_counts(kind: FailureKind.ValueType) -> None:
    counted = {
        FailureKind.FAILURE_KIND_UNSPECIFIED,
        FailureKind.FAILURE_KIND_TRANSIENT,
        FailureKind.FAILURE_KIND_INTERNAL,
    }
    assert (result_of(Failure(kind=kind)) is BAD) is (kind in counted)


def limited(seconds: float | None, bucket: str = "", *, everybody: bool = False) -> Failure:
    failure = Failure(kind=FailureKind.FAILURE_KIND_RATE_LIMITED)
    if seconds is not None:
        failure.retry_after.FromMilliseconds(round(seconds * 1000))
    failure.throttle_scope.bucket = bucket
    if everybody:
        failure.throttle_scope.reach = ThrottleScope.REACH_PLUGIN
    return failure


async def test_only_what_drinks_from_the_empty_bucket_waits() -> None:
    clock = SteeredClock()
    throttles = Throttles(clock)
    one, two, other = served("one", 1), served("one", 2), served("two")
    throttles.hold(one, "search", limited(30, "search"))
    assert throttles.remaining(one, "search") == 30
    assert throttles.remaining(one, "comment") == 0, "it was never seen at that bucket"
    assert throttles.remaining(two, "search") == 0, "another connection has another bucket"
    throttles.hold(one, "comment", limited(5))
    assert throttles.remaining(one, "anything") == 5, "a bucket without a name is all there is"
    throttles.hold(two, "list", limited(10, "app", everybody=True))
    assert throttles.remaining(one, "list") == 10
    assert throttles.remaining(other, "list") == 0
    await clock.advance(31)
    assert throttles.remaining(one, "search") == 0


def test_patience_has_an_end_and_so_has_what_is_remembered() -> None:
    throttles = Throttles(SteeredClock(), most=20)
    throttles.hold(served("one"), "x", limited(1e9))
    assert throttles.remaining(served("one"), "x") == LONGEST_SECONDS
    for number in range(200):
        throttles.hold(served("one", number), "x", limited(None, f"bucket {number}"))
    assert len(throttles) <= 20


async def held(turns: Turns, who: str, order: list[str], done: asyncio.Event) -> None:
    async with turns.turn(who):
        order.append(who)
        await done.wait()


async def test_a_greedy_connection_leaves_room_for_a_modest_one() -> None:
    turns, order, done = Turns(4), list[str](), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(held(turns, "greedy", order, done))
        await settle_loop()
        assert order == ["greedy"] * 3, "most of it, never all"
        tasks.create_task(held(turns, "modest", order, done))
        await settle_loop()
        assert order[-1] == "modest"
        tasks.create_task(held(turns, "late", order, done))
        done.set()
    assert order.index("late") == 4, "who has least is next, however many wait longer"
    assert not turns._in_use
    assert not turns._waiting


async def test_whoever_leaves_while_waiting_takes_nothing_along() -> None:
    turns, order, done = Turns(1), list[str](), asyncio.Event()
    first = asyncio.create_task(held(turns, "a", order, done))
    await settle_loop()
    waiting = [asyncio.create_task(held(turns, MANY, order, done)) for _ in range(3)]
    await settle_loop()
    done.set()
    # Cancelled in the very moment in which its turn comes.
    await first
    waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not turns._in_use
    async with asyncio.timeout(30), turns.turn("b"):
        pass


async def settle_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_from_before_it_opened_do_not_open_it_again() -> None:
    clock = SteeredClock()
    circuits = Circuits(clock, POLICY)
    early = [circuits.admit("way") for _ in range(2 * POLICY.failures)]
    assert all(isinstance(ticket, Ticket) for ticket in early)
    for ticket in early[: POLICY.failures]:
        assert isinstance(ticket, Ticket)
        circuits.settle("way", ticket, BAD)
    assert isinstance(circuits.admit("way"), float)
    await clock.advance(POLICY.pause)
    trial = circuits.admit("way")
    assert isinstance(trial, Ticket)
    circuits.settle("way", trial, GOOD)
    for ticket in early[POLICY.failures :]:
        assert isinstance(ticket, Ticket)
        circuits.settle("way", ticket, BAD)
    assert isinstance(circuits.admit("way"), Ticket)
