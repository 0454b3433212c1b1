"""How an operation goes on: what it is, what happened, when, and what chance says, give what it is next.

Pure: no clock, no database, no randomness of its own. What holds it together:

* RUNNING is stored before the plugin is called. Who finds one that nobody is at any more knows that the attempt
  may have had its effect (`Lost`).
* An effect that is UNKNOWN is repeated only where the action is idempotent. Any other goes AMBIGUOUS, and leaves it
  by what the provider or a person says, never by time.
* Where nothing was done because somebody is away, no retry is used up: the start deadline bounds the waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from services.registry.operations.operation import Progress, Repeats, State
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind
from tieline.event.v1.content_pb2 import ObjectVersion

START_WITHIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds, and how often."""

    retry_base: float = 1.0
    retry_cap: float = 3600.0
    wait_cap: float = 300.0
    """What is away is looked for this often at least."""
    retries: int = 20
    ask_base: float = 5.0
    ask_cap: float = 3600.0
    asks: int = 8
    """In vain, before a person is needed."""
    longest: float = 86400.0
    """A provider may ask for patience, not for ever."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Somebody takes it on: the plugin is about to be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It has its effect; also as the answer to what became of it."""

    output: bytes
    written: Sequence[ObjectVersion] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoesOn:
    """The provider is at it."""

    ask_after: float
    pending_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt came to this, or, by the provider's word, the work did."""

    failure: Failure
    reached: bool = True
    """Whether the plugin was called at all."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Who was at it is gone. Until then a call of theirs may still be under way, so nobody asks or calls before."""

    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class NeverArrived:
    """The provider is sure that it has none of it."""


@dataclass(frozen=True, slots=True)
class Untold:
    """It was asked what became of it, and that cannot be told. `final`: asking again is of no use."""

    failure: Failure | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class Unasked:
    """It could not be asked what became of it: somebody is away."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class CancelWanted:
    """A person takes it back, or its connection is gone."""


@dataclass(frozen=True, slots=True)
class RetryWanted:
    """A person wants it tried once more."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A person says what became of it."""

    applied: bool


@dataclass(frozen=True, slots=True)
class Expired:
    """It had not begun when it should have."""


Happening = (
    Begun
    | Done
    | GoesOn
    | Failed
    | Lost
    | NeverArrived
    | Untold
    | Unasked
    | CancelWanted
    | RetryWanted
    | Resolved
    | Expired
)


class Impossible(Exception):  # noqa: N818 - a state, not a fault
    """That cannot happen to an operation in this state. The text says why, for people."""


K = FailureKind
# Nothing was done, because somebody is away or has to mend something first.
_AWAY = frozenset(
    {
        K.FAILURE_KIND_TRANSIENT,
        K.FAILURE_KIND_RATE_LIMITED,
        K.FAILURE_KIND_AUTH_FAILED,
        K.FAILURE_KIND_PERMISSION_DENIED,
        K.FAILURE_KIND_INVALID_CONFIG,
        K.FAILURE_KIND_NOT_PREPARED,
    }
)
# Asking again would not change the answer.
_LAST_WORD = frozenset(
    {
        K.FAILURE_KIND_INVALID_INPUT,
        K.FAILURE_KIND_NOT_FOUND,
        K.FAILURE_KIND_CONFLICT,
        K.FAILURE_KIND_CURSOR_INVALID,
        K.FAILURE_KIND_UNSUPPORTED,
    }
)


class _At(NamedTuple):
    now: datetime
    chance: float


class Machine:
    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()

    def step(self, was: Progress, what: Happening, now: datetime, chance: float) -> Progress:
        """`chance` is uniform in [0, 1). Raises Impossible."""
        match what:
            case Begun():
                _demand(was, {State.QUEUED}, "begun")
                return replace(was, state=State.RUNNING, attempts=was.attempts + 1, away=False, due=None)
            case CancelWanted():
                return _cancel(was, now)
            case RetryWanted():
                return _again(was, now)
            case Resolved(applied):
                return _resolved(was, applied=applied)
            case Expired():
                _demand(was, {State.QUEUED}, "given up")
                if was.uncertain:
                    raise Impossible("it may have begun")
                return _end(was, State.FAILED, _expired(was))
            case _:
                return self._told(was, what, _At(now, chance))

    def _told(self, was: Progress, what: Happening, at: _At) -> Progress:
        """What became of an attempt, or of asking about one."""
        if isinstance(what, Done) and was.state is State.QUEUED:  # it was given up, and answered all the same
            was = replace(was, state=State.RUNNING)
        _demand(was, {State.RUNNING, State.PENDING, State.AMBIGUOUS}, "concluded")
        match what:
            case Done(output=output, written=written):
                return _end(replace(was, output=output, written=tuple(written)), State.SUCCEEDED, None)
            case GoesOn(ask_after=after, pending_id=pending):
                return self._goes_on(was, after, pending, at.now)
            case Failed(failure, reached):
                return self._failed(was, failure, at, reached=reached)
            case NeverArrived():
                return self._requeued(_settled(was, at.now), was.failure, at)
            case _:
                return self._doubted(was, what, at)

    def _doubted(self, was: Progress, what: Happening, at: _At) -> Progress:
        match what:
            case Lost(until):
                doubted = self._unknown(was, _lost(), at)
                if until is None or doubted.due is None:
                    return doubted
                return replace(doubted, due=max(doubted.due, until))
            case Untold(failure, final):
                return self._unknown(was, failure or _untold(), at, final=final)
            case Unasked(failure):
                waits = was.waits + 1
                due = self._later(at, self.policy.ask_base, waits, self.policy.wait_cap, failure)
                return replace(was, waits=waits, due=due, failure=was.failure or failure)
            case _:
                raise Impossible(f"{type(what).__name__} says nothing of an attempt")

    def _goes_on(self, was: Progress, after: float, pending: str, now: datetime) -> Progress:
        return replace(
            was,
            state=State.PENDING,
            due=now + timedelta(seconds=min(max(after, 0.0), self.policy.longest)),
            asks=0,
            waits=0,
            uncertain=True,
            pending_id=pending or was.pending_id,
            failure=None,
        )

    def _failed(self, was: Progress, failure: Failure, at: _At, *, reached: bool) -> Progress:
        reads = was.repeats is Repeats.READ_ONLY
        if failure.effect == Effect.EFFECT_APPLIED and not reads:
            return _end(was, State.SUCCEEDED, failure)
        if failure.effect != Effect.EFFECT_NONE and not reads:
            return self._unknown(was, failure, at)
        if failure.kind in _LAST_WORD:
            return _end(replace(was, uncertain=False), State.FAILED, failure)
        if was.state is not State.RUNNING:  # the provider was at it, and has nothing to show for it
            return self._requeued(_settled(was, at.now), failure, at)
        # This attempt did nothing; an earlier one in doubt, under the same key, may have.
        if failure.kind in _AWAY:
            waits = was.waits + 1
            due = self._later(at, self.policy.retry_base, waits, self.policy.wait_cap, failure)
            attempts = was.attempts if reached else was.attempts - 1
            return _queued(
                replace(was, failure=failure, waits=waits, attempts=attempts, due=due, away=True), at.now
            )
        return self._requeued(was, failure, at)

    def _unknown(self, was: Progress, failure: Failure, at: _At, *, final: bool = False) -> Progress:
        """It may have its effect: repeated under its key where that is safe, asked about where it is not."""
        if was.repeats is Repeats.READ_ONLY:
            return self._requeued(was, failure, at)
        doubtful = replace(was, uncertain=True)
        if was.repeats in {Repeats.NATIVE, Repeats.CHECKED} and not was.cancel_wanted:
            return self._requeued(doubtful, failure, at)
        if was.state is State.RUNNING:
            return replace(doubtful, state=State.AMBIGUOUS, failure=failure, due=at.now, asks=0, waits=0)
        asks, due = was.asks + 1, None
        if not final and asks < self.policy.asks:
            due = self._later(at, self.policy.ask_base, asks, self.policy.ask_cap, failure)
        return replace(doubtful, state=State.AMBIGUOUS, asks=asks, due=due, failure=was.failure or failure)

    def _requeued(self, was: Progress, failure: Failure | None, at: _At) -> Progress:
        faults = was.faults + 1
        if faults > self.policy.retries:
            return _end(replace(was, faults=faults), State.DEAD_LETTERED, failure)
        due = self._later(at, self.policy.retry_base, faults, self.policy.retry_cap, failure)
        return _queued(replace(was, failure=failure, faults=faults, waits=0, asks=0, due=due), at.now)

    def _later(self, at: _At, base: float, count: int, cap: float, failure: Failure | None) -> datetime:
        """Full jitter below a bound that doubles, and never before the failure allows."""
        bound = min(cap, base * 2.0 ** min(count - 1, 30))
        asked = 0.0
        if failure is not None and failure.HasField("retry_after"):
            asked = min(self.policy.longest, failure.retry_after.ToTimedelta().total_seconds())
        return at.now + timedelta(seconds=asked + bound * at.chance)


def _cancel(was: Progress, now: datetime) -> Progress:
    if was.ended:
        if was.state is State.CANCELLED:
            return was
        raise Impossible(f"it has ended: it is {was.state.value}")
    if was.state is not State.QUEUED:
        return replace(was, cancel_wanted=True)
    return _queued(replace(was, cancel_wanted=True), now)  # where it is in doubt, that is asked first


def _again(was: Progress, now: datetime) -> Progress:
    if was.state in {State.QUEUED, State.RUNNING, State.PENDING}:
        return was
    if was.state is State.AMBIGUOUS:
        raise Impossible("it may have its effect: look at the provider, then `tieline operation resolve`")
    if was.state not in {State.FAILED, State.DEAD_LETTERED}:
        raise Impossible(f"it is {was.state.value}; only what failed or was dead-lettered is tried again")
    return replace(
        was,
        state=State.QUEUED,
        due=now,
        start_deadline=max(was.start_deadline, now + START_WITHIN),
        faults=0,
        waits=0,
        asks=0,
        cancel_wanted=False,
        resolved=None,
        away=False,
    )


def _resolved(was: Progress, *, applied: bool) -> Progress:
    if was.resolved is applied and was.state is (State.SUCCEEDED if applied else State.FAILED):
        return was
    if was.state is not State.AMBIGUOUS:
        raise Impossible(f"it is {was.state.value}, not ambiguous")
    state = State.SUCCEEDED if applied else State.FAILED
    return _end(replace(was, resolved=applied, uncertain=applied), state, was.failure)


def _queued(was: Progress, now: datetime) -> Progress:
    """Back to the queue, unless somebody has taken it back meanwhile."""
    if not was.cancel_wanted:
        return replace(was, state=State.QUEUED)
    if was.uncertain:
        return replace(was, state=State.AMBIGUOUS, due=now, asks=0, away=False)
    return _end(was, State.CANCELLED, was.failure)


def _settled(was: Progress, now: datetime) -> Progress:
    """It is known that nothing is left of what was begun: it may begin again, and has time for that."""
    deadline = max(was.start_deadline, now + START_WITHIN)
    return replace(was, uncertain=False, pending_id="", start_deadline=deadline)


def _end(was: Progress, state: State, failure: Failure | None) -> Progress:
    return replace(was, state=state, failure=failure, due=None, away=False)


def _demand(was: Progress, states: set[State], wanted: str) -> None:
    if was.state not in states:
        raise Impossible(f"it is {was.state.value} and cannot be {wanted}")


def _lost() -> Failure:
    return Failure(
        kind=K.FAILURE_KIND_TRANSIENT,
        reason="ATTEMPT_LOST",
        message="who called the plugin is gone, and its answer with it",
        effect=Effect.EFFECT_UNKNOWN,
    )


def _untold() -> Failure:
    return Failure(
        kind=K.FAILURE_KIND_TRANSIENT,
        reason="OUTCOME_UNKNOWN",
        message="the plugin cannot tell what became of it",
        effect=Effect.EFFECT_UNKNOWN,
    )


def _expired(was: Progress) -> Failure:
    """Why it never began is the most useful part."""
    why = f": {was.failure.reason} {was.failure.message}" if was.failure is not None else ""
    return Failure(
        kind=K.FAILURE_KIND_TRANSIENT,
        reason="START_DEADLINE",
        message=f"it had not begun by its start deadline{why}"[:1000],
        effect=Effect.EFFECT_NONE,
    )
