"""When a schedule is due again, and whose turn it is. No clock, no database, no chance of its own.

Times are seconds since the poll began. The next time follows from when it was due, not from when somebody came
to it, so lateness does not add up; what was missed meanwhile is made up for once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from services.registry.polling.poller import Ended, Polled
from services.registry.schedules.schedule import State
from tieline.common.v1.failure_pb2 import Failure, FailureKind

JITTER = 0.1
"""A period is up to so much longer than the interval, each schedule by its own share: they drift apart."""
EMPTY_LIMIT_SECONDS = 5.0
"""Who says that there is more and gives nothing is not asked again at once."""
THROTTLED_SECONDS = 60.0
"""Where nobody says how long."""
LONGEST_SECONDS = 24 * 3600.0
"""Nobody puts a poll off for longer, whatever a plugin says."""
AGE_SECONDS = 30.0
"""Waiting so long counts as much as one poll less that is under way."""

_QUICK = (2.0, 300.0)
_SLOW = (30.0, 3600.0)
"""First and longest bound of a pause. The second is for what a person has to mend."""
_PASSING = {
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_INTERNAL,
    FailureKind.FAILURE_KIND_CONFLICT,
    FailureKind.FAILURE_KIND_NOT_PREPARED,
}
_NOBODYS_FAULT = {"DELETING", "GAVE_WAY", "PAUSED", "SUSPENDED"}
"""Said by our own broker: the poll was not begun, or gave way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One poll of one schedule, from when it began."""

    interval: float
    gap: float = 0.0
    """Least time between two beginnings, as the plugin demands it."""
    phase: float = 0.0
    late: float = 0.0
    """How long before its beginning it was due."""
    took: float = 0.0
    failures: int = 0
    """In a row, before this one."""
    finite: bool = False
    """It ends when it has caught up: a backfill."""
    stops: bool = False
    """A person is to decide about a checkpoint that is no longer known."""


@dataclass(frozen=True, slots=True)
class Next:
    state: State
    delay: float
    """From the end of this poll."""
    failures: int = 0
    failure: Failure | None = None


def period(interval: float, phase: float) -> float:
    return interval * (1 + JITTER * phase)


def after(turn: Turn, polled: Polled, chance: float) -> Next:
    """What follows. `chance` is uniform in [0, 1)."""
    told = min(max(polled.again_after or 0.0, 0.0), LONGEST_SECONDS)
    match polled.ended:
        case Ended.CAUGHT_UP if turn.finite:
            then = Next(State.DONE, 0.0)
        case Ended.CAUGHT_UP:
            then = Next(State.WAITING, max(_next_period(turn), told))
        case Ended.LIMIT:
            found = polled.records or polled.broken
            then = Next(State.WAITING, max(told, 0.0 if found else EMPTY_LIMIT_SECONDS))
        case Ended.THROTTLED:
            wait = told or THROTTLED_SECONDS
            then = Next(State.THROTTLED, _spread(wait, chance), 0, _throttled(polled))
        case Ended.HELD | Ended.TAKEN_OVER:
            then = Next(State.WAITING, _spread(told, chance))
        case Ended.CURSOR_INVALID if turn.stops:
            then = Next(State.STOPPED, 0.0, turn.failures, polled.failure)
        case Ended.CURSOR_INVALID if polled.again_after is not None:
            then = Next(State.WAITING, told)
        case _:
            then = _failed(turn, polled, told, chance)
    return then


def _next_period(turn: Turn) -> float:
    """The first time on its own beat that is still to come, and no sooner than the plugin allows."""
    beat = period(turn.interval, turn.phase)
    missed = floor((turn.took + turn.late) / beat)
    due = beat * (missed + 1) - turn.late
    return max(due, turn.gap, turn.took) - turn.took


def _failed(turn: Turn, polled: Polled, told: float, chance: float) -> Next:
    failure = polled.failure or Failure()
    if failure.reason in _NOBODYS_FAULT:
        return Next(State.WAITING, max(told, 1.0), turn.failures)
    if failure.kind == FailureKind.FAILURE_KIND_RATE_LIMITED and told:
        return Next(State.THROTTLED, _spread(told, chance), turn.failures, failure)
    failures = turn.failures + 1
    base, cap = _QUICK if failure.kind in _PASSING else _SLOW
    bound = min(cap, base * 2.0 ** min(failures - 1, 40))
    throttled = failure.kind == FailureKind.FAILURE_KIND_RATE_LIMITED
    state = State.THROTTLED if throttled else State.FAILING
    return Next(state, max(told, 1.0, chance * bound), failures, failure)


def _spread(seconds: float, chance: float) -> float:
    """Those who wait for the same moment do not all come in it."""
    return seconds * (1 + JITTER * chance)


def _throttled(polled: Polled) -> Failure:
    if polled.failure is not None:
        return polled.failure
    return Failure(
        kind=FailureKind.FAILURE_KIND_RATE_LIMITED,
        reason="THROTTLED",
        message="the provider asks for patience",
    )


@dataclass(frozen=True, slots=True)
class Due:
    """Somebody whose time has come."""

    tenant: str
    connection: str
    id: str
    plugin: str
    bulk: bool
    late: float


@dataclass(frozen=True, slots=True)
class Room:
    """What may be under way: here in all and for history, for each connection anywhere, for each plugin here."""

    total: int
    bulk: int
    live_of_connection: int
    bulk_of_connection: int
    plugins: Mapping[str, int]


@dataclass(slots=True)
class Busy:
    """How many polls are under way anywhere."""

    tenants: Counter[str] = field(default_factory=Counter)
    connections: Counter[tuple[str, str, bool]] = field(default_factory=Counter)

    def add(self, tenant: str, connection: str, *, bulk: bool, count: int = 1) -> None:
        self.tenants[tenant] += count
        self.connections[tenant, connection, bulk] += count


def choose(due: Sequence[Due], busy: Busy, room: Room) -> list[Due]:
    """Whose turn it is: whoever has least under way, and has waited longest. Waiting wins in the end."""
    waiting, chosen = list(due), list[Due]()
    bulk, plugins = room.bulk, dict(room.plugins)

    def may(one: Due) -> bool:
        most = room.bulk_of_connection if one.bulk else room.live_of_connection
        return (
            plugins.get(one.plugin, 0) > 0
            and (not one.bulk or bulk > 0)
            and busy.connections[one.tenant, one.connection, one.bulk] < most
        )

    def weight(one: Due) -> tuple[float, float]:
        here = busy.connections[one.tenant, one.connection, one.bulk]
        return busy.tenants[one.tenant] + here - one.late / AGE_SECONDS, -one.late

    while len(chosen) < room.total and (waiting := [one for one in waiting if may(one)]):
        one = min(waiting, key=weight)
        waiting.remove(one)
        chosen.append(one)
        busy.add(one.tenant, one.connection, bulk=one.bulk)
        plugins[one.plugin] -= 1
        bulk -= one.bulk
    return chosen
