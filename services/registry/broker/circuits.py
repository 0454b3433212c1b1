"""Circuit breakers: what failed several times in a row is left alone for a while, then tried by one call.

`Circuit` is a pure state machine: no clock, no chance, no waiting. `Circuits` keeps those that have something to
remember, and no more of them than its bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from foundation.clock import Clock
from tieline.common.v1.failure_pb2 import Failure, FailureKind

MOST = 10_000
"""Circuits that are remembered; the one that was quiet for longest is forgotten first."""


class State(Enum):
    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()
    """One call is out to see; nobody else may go."""


class Result(Enum):
    GOOD = auto()
    BAD = auto()
    UNTOLD = auto()
    """It says nothing: the call never arrived, was given up, or failed for a reason of its own."""


@dataclass(frozen=True, slots=True)
class Policy:
    """After so many failures in a row the first pause; each failed trial doubles it up to the longest."""

    failures: int = 5
    pause: float = 1.0
    longest: float = 60.0


class Ticket(NamedTuple):
    """Leave to make one call; handed back with its result."""

    era: int
    trial: bool = False


class Circuit:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._failures = 0
        self._pause = policy.pause
        self._until = 0.0
        self._era = 0
        """Grows with every change of state, so that calls from before it change nothing after it."""
        self.state = State.CLOSED

    @property
    def clean(self) -> bool:
        """Nothing would be lost with it. One that was open knows which calls are from before that."""
        return self.state is State.CLOSED and not self._failures and not self._era

    def admit(self, now: float) -> Ticket | float:
        """Leave to call, or in how many seconds to ask again."""
        if self.state is State.CLOSED:
            return Ticket(self._era)
        if self.state is State.HALF_OPEN:
            return self._policy.pause
        if now < self._until:
            return self._until - now
        self._turn(State.HALF_OPEN)
        return Ticket(self._era, trial=True)

    def opens_in(self, now: float) -> float:
        """Seconds until one call may try."""
        return max(0.0, self._until - now)

    def telling(self, now: float) -> bool:
        """Whether it is open, and was called lately or could not be."""
        return self.state is State.OPEN and now - self._until <= self._policy.longest

    def settle(self, ticket: Ticket, result: Result, now: float) -> None:
        if ticket.era != self._era:
            return
        if ticket.trial:
            self._settle_trial(result, now)
        elif result is Result.GOOD:
            self._failures = 0
        elif result is Result.BAD:
            self._failures += 1
            if self._failures >= self._policy.failures:
                self._open(now, self._policy.pause)

    def _settle_trial(self, result: Result, now: float) -> None:
        if result is Result.GOOD:
            self._failures = 0
            self._turn(State.CLOSED)
        elif result is Result.BAD:
            self._open(now, min(self._pause * 2, self._policy.longest))
        else:
            self._open(now, self._pause, waits=False)

    def _open(self, now: float, pause: float, *, waits: bool = True) -> None:
        self._pause = pause
        self._until = now + pause if waits else now
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self.state = state
        self._era += 1


class Circuits:
    """By key: a connection and an operation, or a process."""

    def __init__(self, clock: Clock, policy: Policy | None = None, most: int = MOST) -> None:
        self._clock = clock
        self._policy = policy or Policy()
        self._most = most
        self._kept: OrderedDict[Hashable, Circuit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def admit(self, key: Hashable) -> Ticket | float:
        circuit = self._kept.get(key)
        return Ticket(0) if circuit is None else circuit.admit(self._clock.monotonic())

    def not_closed(self) -> Iterator[tuple[Hashable, State, float]]:
        """Those that are left alone at the moment, and in how many seconds one call may try.

        One that nobody has tried for long although anybody might says nothing of today any more.
        """
        now = self._clock.monotonic()
        for key, circuit in self._kept.items():
            if circuit.state is State.HALF_OPEN or circuit.telling(now):
                yield key, circuit.state, circuit.opens_in(now)

    def settle(self, key: Hashable, ticket: Ticket, result: Result) -> None:
        circuit = self._kept.get(key)
        if circuit is None:
            if result is not Result.BAD:
                return
            circuit = self._kept[key] = Circuit(self._policy)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        circuit.settle(ticket, result, self._clock.monotonic())
        if circuit.clean:
            del self._kept[key]
        else:
            self._kept.move_to_end(key)


_COUNTED = {
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_INTERNAL,
    FailureKind.FAILURE_KIND_UNSPECIFIED,
}
# Somebody refused before anything was done: that does not show that it works.
_TELLING_NOTHING = {
    FailureKind.FAILURE_KIND_RATE_LIMITED,
    FailureKind.FAILURE_KIND_AUTH_FAILED,
    FailureKind.FAILURE_KIND_NOT_PREPARED,
}


def result_of(failure: Failure | None) -> Result:
    """What a call says of whether its way works."""
    if failure is None:
        return Result.GOOD
    if failure.kind in _COUNTED:
        return Result.BAD
    return Result.UNTOLD if failure.kind in _TELLING_NOTHING else Result.GOOD
