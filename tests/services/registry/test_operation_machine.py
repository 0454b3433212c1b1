"""The state machine of operations against a provider that counts, with everything that can happen between the two."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.operations.machine import (
    Begun,
    CancelWanted,
    Done,
    Expired,
    Failed,
    GoesOn,
    Happening,
    Impossible,
    Lost,
    Machine,
    NeverArrived,
    Policy,
    Resolved,
    RetryWanted,
    Unasked,
    Untold,
)
from services.registry.operations.operation import ENDED, Progress, Repeats, State
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = [kind for kind in FailureKind.values() if kind]
MACHINE = Machine()


def fresh(repeats: Repeats = Repeats.NONE) -> Progress:
    return Progress(due=NOW, start_deadline=NOW + timedelta(days=1), repeats=repeats)


def failure(
    kind: FailureKind.ValueType = FailureKind.FAILURE_KIND_TRANSIENT,
    effect: Effect.ValueType = Effect.EFFECT_NONE,
) -> Failure:
    return Failure(kind=kind, reason="R", effect=effect)


def step(was: Progress, *happenings: Happening, chance: float = 0.5) -> Progress:
    for what in happenings:
        was = MACHINE.step(was, what, NOW, chance)
    return was


class Provider:
    """What is behind a plugin. It tells the truth, or that it does not know; what dies on the way it cannot help."""

    def __init__(self, repeats: Repeats) -> None:
        self.repeats = repeats
        self.effects = 0

    def call(self, how: str, kind: FailureKind.ValueType) -> Happening:
        arrives = how in {"done", "goes on", "cut off", "lost after", "applied"}
        if arrives and not (self.repeats in {Repeats.NATIVE, Repeats.CHECKED} and self.effects):
            self.effects += 1
        match how:
            case "done":
                return Done(output=b"{}")
            case "goes on":
                return GoesOn(ask_after=5.0, pending_id="job")
            case "lost before" | "lost after":
                return Lost()
            case "applied":
                return Failed(failure(kind, Effect.EFFECT_APPLIED))
            case "refused":
                return Failed(failure(kind))
            case _:
                return Failed(failure(kind, Effect.EFFECT_UNKNOWN))

    def ask(self, how: str, kind: FailureKind.ValueType) -> Happening:
        match how:
            case "truth":
                return Done(output=b"{}") if self.effects else NeverArrived()
            case "away":
                return Unasked(failure(kind))
            case "never":
                return Untold(final=True)
            case _:
                return Untold()


CALLS = ["done", "goes on", "lost before", "lost after", "applied", "refused", "cut off", "cut off before"]
MOVES = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(CALLS), st.sampled_from(KINDS)),
    st.tuples(
        st.just("ask"), st.sampled_from(["truth", "away", "never", "who knows"]), st.sampled_from(KINDS)
    ),
    st.tuples(st.just("cancel"), st.just(""), st.just(KINDS[0])),
    st.tuples(st.just("retry"), st.just(""), st.just(KINDS[0])),
    st.tuples(st.just("expire"), st.just(""), st.just(KINDS[0])),
)


@settings(max_examples=1000)
@given(
    repeats=st.sampled_from([Repeats.NONE, Repeats.NATIVE, Repeats.CHECKED]),
    moves=st.lists(MOVES, max_size=40),
    retries=st.integers(0, 4),
    chance=st.floats(0, 0.999),
)
def test_no_effect_comes_twice_and_none_is_denied(
    repeats: Repeats,
    moves: list[tuple[str, str, FailureKind.ValueType]],
    retries: int,
    chance: float,
) -> None:
    """An action has its effect once at most, and no state says what is not so.

    Feature: integrations, Property 40: whatever is lost, cut off, refused, asked, cancelled and tried again, in
    whatever order, an action that is not idempotent has its effect at most once unless a person spoke; SUCCEEDED had
    it; FAILED, CANCELLED and the dead letters of such an action did not.
    """
    machine = Machine(Policy(retries=retries, asks=3))
    provider, now = Provider(repeats), NOW
    was = fresh(repeats)
    for move in moves:
        now += timedelta(days=1)
        if (what := happening(was, provider, *move)) is None:
            continue
        try:
            if move[0] == "call":
                was = machine.step(was, Begun(), now, chance)
            was = machine.step(was, what, now, chance)
        except Impossible:
            continue
        demand_truth(was, provider)


def happening(
    was: Progress, provider: Provider, move: str, how: str, kind: FailureKind.ValueType
) -> Happening | None:
    match move:
        case "call" if was.state is State.QUEUED:
            return provider.call(how, kind)
        case "ask" if was.state in {State.PENDING, State.AMBIGUOUS} and was.due is not None:
            return provider.ask(how, kind)
        case "cancel":
            return CancelWanted()
        case "retry":
            return RetryWanted()
        case "expire" if was.state is State.QUEUED:
            return Expired()
    return None


def demand_truth(was: Progress, provider: Provider) -> None:
    assert provider.effects <= 1
    assert was.attempts >= 0
    assert (was.due is None) == (was.ended or was.needs_person)
    if was.state is State.SUCCEEDED:
        assert provider.effects == 1
    if provider.effects and provider.repeats is Repeats.NONE:
        assert was.state in {State.SUCCEEDED, State.PENDING, State.AMBIGUOUS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_did_nothing_goes_on_by_its_kind(kind: FailureKind.ValueType) -> None:
    after = step(fresh(), Begun(), Failed(failure(kind)))
    words = FailureKind.Name(kind).removeprefix("FAILURE_KIND_")
    if words in {"INVALID_INPUT", "NOT_FOUND", "CONFLICT", "CURSOR_INVALID", "UNSUPPORTED"}:
        assert after.state is State.FAILED
    else:
        assert after.state is State.QUEUED
        assert after.due is not None
        assert after.due > NOW
        assert after.faults == (1 if words == "INTERNAL" else 0)


@pytest.mark.parametrize("repeats", list(Repeats))
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_effect_is_repeated_only_where_that_is_safe(
    repeats: Repeats, kind: FailureKind.ValueType
) -> None:
    after = step(fresh(repeats), Begun(), Failed(failure(kind, Effect.EFFECT_UNKNOWN)))
    if repeats is Repeats.NONE:
        assert (after.state, after.due) == (State.AMBIGUOUS, NOW)
    elif repeats is not Repeats.READ_ONLY:
        assert (after.state, after.uncertain) == (State.QUEUED, True)


def test_an_offline_provider_uses_up_no_retry_however_long_it_is_away() -> None:
    was = fresh()
    for _ in range(1000):
        was = step(was, Begun(), Failed(failure(), reached=False), chance=0.99)
        assert was.due is not None
        assert was.due - NOW <= timedelta(seconds=MACHINE.policy.wait_cap)
    assert (was.state, was.faults, was.attempts) == (State.QUEUED, 0, 0)
    assert step(was, Begun(), Done(output=b"{}")).state is State.SUCCEEDED


def test_defects_use_up_retries_and_a_person_may_begin_anew() -> None:
    was = fresh()
    defect = Failed(failure(FailureKind.FAILURE_KIND_INTERNAL))
    for _ in range(MACHINE.policy.retries):
        was = step(was, Begun(), defect)
        assert was.state is State.QUEUED
    was = step(was, Begun(), defect)
    assert (was.state, was.due) == (State.DEAD_LETTERED, None)
    again = step(was, RetryWanted())
    assert (again.state, again.faults, again.due) == (State.QUEUED, 0, NOW)


def test_what_the_provider_asks_for_is_waited_out() -> None:
    limited = failure(FailureKind.FAILURE_KIND_RATE_LIMITED)
    limited.retry_after.seconds = 1000
    after = step(fresh(), Begun(), Failed(limited), chance=0.0)
    assert after.due == NOW + timedelta(seconds=1000)
    limited.retry_after.seconds = 10**9
    patient = step(fresh(), Begun(), Failed(limited), chance=0.0)
    assert patient.due == NOW + timedelta(days=1)


def test_done_without_an_answer_is_done_and_says_why_it_has_none() -> None:
    lost = failure(FailureKind.FAILURE_KIND_INTERNAL, Effect.EFFECT_APPLIED)
    after = step(fresh(), Begun(), Failed(lost))
    assert (after.state, after.output, after.failure) == (State.SUCCEEDED, None, lost)


def test_asking_ends_with_a_person_who_decides() -> None:
    was = step(fresh(), Begun(), Lost())
    for _ in range(MACHINE.policy.asks - 1):
        was = step(was, Untold())
        assert not was.needs_person
    was = step(was, Untold())
    assert was.needs_person
    assert step(was, Resolved(applied=True)).state is State.SUCCEEDED
    denied = step(was, Resolved(applied=False))
    assert denied.state is State.FAILED
    assert step(denied, Resolved(applied=False)) == denied, "saying it twice changes nothing"
    assert step(denied, RetryWanted(), Begun()).state is State.RUNNING
    with pytest.raises(Impossible, match="may have its effect"):
        step(was, RetryWanted())


@pytest.mark.parametrize("repeats", list(Repeats))
def test_a_lost_call_is_neither_repeated_nor_asked_about_before_it_is_over(repeats: Repeats) -> None:
    over = NOW + timedelta(minutes=5)
    lost = step(fresh(repeats), Begun(), Lost(over))
    assert lost.due == over
    later = MACHINE.step(step(fresh(repeats), Begun()), Lost(over), over + timedelta(minutes=1), 0.5)
    assert later.due is not None
    assert later.due > over, "its own pause holds, too"


def test_long_work_is_asked_about_and_begins_again_if_it_never_arrived() -> None:
    was = step(fresh(), Begun(), GoesOn(ask_after=7.0, pending_id="job"))
    assert (was.state, was.due, was.pending_id) == (State.PENDING, NOW + timedelta(seconds=7), "job")
    still = step(was, GoesOn(ask_after=9.0))
    assert (still.pending_id, still.due) == ("job", NOW + timedelta(seconds=9))
    assert step(still, Done(output=b"{}")).state is State.SUCCEEDED
    again = step(still, NeverArrived())
    assert (again.state, again.uncertain, again.pending_id) == (State.QUEUED, False, "")
    over = step(still, Failed(failure(FailureKind.FAILURE_KIND_CONFLICT)))
    assert over.state is State.FAILED
    assert step(still, Failed(failure(effect=Effect.EFFECT_UNKNOWN))).state is State.AMBIGUOUS


def test_cancelling_takes_back_what_has_not_begun_and_asks_about_the_rest() -> None:
    assert step(fresh(), CancelWanted()).state is State.CANCELLED
    running = step(fresh(), Begun(), CancelWanted())
    assert running.state is State.RUNNING
    assert step(running, Failed(failure())).state is State.CANCELLED
    assert step(running, Done(output=b"{}")).state is State.SUCCEEDED
    doubtful = step(fresh(Repeats.CHECKED), Begun(), Lost())
    assert doubtful.state is State.QUEUED
    asked = step(doubtful, CancelWanted())
    assert (asked.state, asked.due) == (State.AMBIGUOUS, NOW)
    assert step(asked, NeverArrived()).state is State.CANCELLED
    for state in ENDED - {State.CANCELLED}:
        with pytest.raises(Impossible):
            step(replace(fresh(), state=state, due=None), CancelWanted())


def test_what_may_have_begun_does_not_end_by_its_start_deadline() -> None:
    late = step(fresh(), Begun(), Failed(failure()), Expired())
    assert (late.state, late.failure and late.failure.reason) == (State.FAILED, "START_DEADLINE")
    with pytest.raises(Impossible):
        step(fresh(Repeats.CHECKED), Begun(), Lost(), Expired())
