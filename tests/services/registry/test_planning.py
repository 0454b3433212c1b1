"""Feature: integrations, Property 12: polling.

Whatever polls come to, and however many replicas share them: no part is polled twice at once, none before it may
be, and none waits for ever. The planning is played in a world without real time; claiming is played as the
database does it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.polling.poller import Ended, Polled
from services.registry.schedules.planning import (
    AGE_SECONDS,
    Busy,
    Due,
    Room,
    Turn,
    after,
    choose,
    period,
)
from services.registry.schedules.schedule import OVER, State, schedule_id
from tieline.common.v1.failure_pb2 import Failure, FailureKind

LEASE = 10.0
K = FailureKind


@dataclass
class Row:
    """A schedule as the database has it."""

    number: int
    tenant: str
    connection: str
    interval: float
    gap: float
    phase: float
    bulk: bool
    due: float
    state: State = State.WAITING
    failures: int = 0
    owner: int | None = None
    lease: float = 0.0
    turn: int = 0
    starts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Manner:
    """How one poll goes."""

    ended: Ended
    took: float
    again: float | None = None
    kind: int = K.FAILURE_KIND_TRANSIENT
    records: int = 1

    def polled(self) -> Polled:
        failure = Failure(kind=self.kind, reason="X") if self.ended is Ended.FAILED else None  # type: ignore[arg-type]
        return Polled(self.ended, self.records, again_after=self.again, failure=failure)


MANNERS = st.builds(
    Manner,
    ended=st.sampled_from([*Ended]),
    took=st.floats(0.01, 90.0),
    again=st.none() | st.floats(0.0, 200.0),
    kind=st.sampled_from([K.FAILURE_KIND_TRANSIENT, K.FAILURE_KIND_AUTH_FAILED, K.FAILURE_KIND_RATE_LIMITED]),
    records=st.integers(0, 3),
)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    found = []
    for number in range(draw(st.integers(1, 25))):
        interval = draw(st.floats(5.0, 300.0))
        found.append(
            Row(
                number,
                tenant=draw(st.sampled_from(["acme", "other", "third"])),
                connection=draw(st.sampled_from(["one", "two"])),
                interval=interval,
                gap=draw(st.floats(0.0, interval)),
                phase=draw(st.floats(0.0, 0.999)),
                bulk=False,
                due=draw(st.floats(-1000.0, interval)),
            )
        )
    return found


class World:
    """Replicas that look every half second, and may die with what they hold."""

    def __init__(self, every: list[Row], replicas: int, manners: list[Manner], chances: list[float]) -> None:
        self.rows, self.alive = every, set(range(replicas))
        self.manners, self.chances = manners, chances
        self.polls = 0
        self.ends: list[tuple[float, int, int, int, Manner, float]] = []

    def run(self, seconds: float, dies_at: float) -> None:
        for tick in range(int(seconds * 2)):
            now = tick / 2
            if now >= dies_at and len(self.alive) > 1:
                self.alive.discard(max(self.alive))
            while self.ends and self.ends[0][0] <= now:
                at, _, number, turn, manner, late = heapq.heappop(self.ends)
                self.end(self.rows[number], turn, manner, at, late)
            for row in self.rows:
                if row.owner in self.alive and row.lease > now:
                    row.lease = now + LEASE
            for replica in sorted(self.alive):
                self.look(replica, now)

    def look(self, replica: int, now: float) -> None:
        busy = Busy()
        held = 0
        for row in self.rows:
            if row.owner is not None and row.lease > now:
                busy.add(row.tenant, row.connection, bulk=row.bulk)
                held += row.owner == replica
        due = [
            Due(row.tenant, row.connection, str(row.number), "p", row.bulk, now - row.due)
            for row in self.rows
            if row.due <= now and row.state not in OVER and (row.owner is None or row.lease <= now)
        ]
        room = Room(3 - held, 1, 2, 1, {"p": 3 - held})
        for one in choose(due, busy, room):
            row = self.rows[int(one.id)]
            assert row.owner is None or row.lease <= now, "two at once"
            row.owner, row.lease, row.turn = replica, now + LEASE, row.turn + 1
            row.starts.append(now)
            manner = self.manners[self.polls % len(self.manners)]
            self.polls += 1
            end = now + manner.took
            heapq.heappush(self.ends, (end, self.polls, row.number, row.turn, manner, one.late))

    def end(self, row: Row, turn: int, manner: Manner, now: float, late: float) -> None:
        if row.turn != turn or row.owner not in self.alive:
            return  # it died with its replica, or was taken over
        begun, due = row.starts[-1], row.due
        stands = Turn(
            interval=row.interval,
            gap=row.gap,
            phase=row.phase,
            late=late,
            took=manner.took,
            failures=row.failures,
        )
        chance = self.chances[self.polls % len(self.chances)]
        polled = manner.polled()
        then = after(stands, polled, chance)
        row.owner, row.state, row.failures, row.due = None, then.state, then.failures, now + then.delay
        assert then.delay >= 0.0
        if polled.again_after is not None and manner.ended is not Ended.CURSOR_INVALID:
            assert then.delay >= min(polled.again_after, 86400.0) - 1e-6, "before the plugin wants it"
        if manner.ended is Ended.CAUGHT_UP:
            assert row.due >= begun + row.gap - 1e-6, "before the plugin allows it"
            assert row.due >= due + row.interval - 1e-6, "before its interval is over"
            wait = max(period(row.interval, row.phase), row.gap, polled.again_after or 0.0)
            assert then.delay <= wait + 1e-6, "later than its turn"


@settings(max_examples=150)
@given(
    rows(),
    st.integers(1, 3),
    st.lists(MANNERS, min_size=1, max_size=12),
    st.lists(st.floats(0.0, 0.999), min_size=1, max_size=5),
    st.floats(0.0, 200.0),
)
def test_no_part_is_polled_twice_at_once_nor_before_its_time(
    every: list[Row], replicas: int, manners: list[Manner], chances: list[float], dies_at: float
) -> None:
    """Feature: integrations, Property 12: never two at once, never earlier than allowed."""
    world = World(every, replicas, manners, chances)
    world.run(400.0, dies_at)
    assert world.polls


@settings(max_examples=100, deadline=None)
@given(rows(), st.integers(1, 2), st.floats(0.0, 200.0))
def test_nobody_waits_for_ever(every: list[Row], replicas: int, dies_at: float) -> None:
    """Feature: integrations, Property 12: whoever is due gets a turn, however much others have to do."""
    greedy = Manner(Ended.LIMIT, took=0.4)
    world = World(every, replicas, [greedy], [0.5])
    world.run(900.0, dies_at)
    for row in every:
        first = max(row.due if not row.starts else 0.0, 0.0)
        assert row.starts, f"never polled, due at {first}"
        gaps = [b - a for a, b in zip(row.starts, [*row.starts[1:], 900.0], strict=True)]
        assert max(gaps) <= 60.0 + LEASE, "starved"


@settings(max_examples=200)
@given(st.floats(1.0, 3600.0), st.floats(0.0, 0.999), st.floats(0.0, 1e6), st.floats(0.0, 400.0))
def test_what_was_missed_is_made_up_for_once(interval: float, phase: float, late: float, took: float) -> None:
    """Feature: integrations, Property 12: after a standstill one poll, and then the old beat."""
    turn = Turn(interval=interval, phase=phase, late=late, took=took)
    then = after(turn, Polled(Ended.CAUGHT_UP), 0.5)
    assert 0.0 <= then.delay <= period(interval, phase) + 1e-6
    beats = (late + took + then.delay) / period(interval, phase)
    assert abs(beats - round(beats)) < 1e-3


def test_pauses_grow_and_end_with_the_first_success() -> None:
    turn, bounds = Turn(interval=60.0), []
    for _ in range(12):
        then = after(turn, Polled(Ended.FAILED, failure=Failure(kind=K.FAILURE_KIND_TRANSIENT)), 0.999)
        assert then.state is State.FAILING
        bounds.append(then.delay)
        turn = replace(turn, failures=then.failures)
    assert bounds == sorted(bounds)
    assert bounds[0] < 3
    assert 290 < bounds[-1] <= 300
    assert after(turn, Polled(Ended.CAUGHT_UP), 0.5).failures == 0
    mended = Polled(Ended.FAILED, failure=Failure(kind=K.FAILURE_KIND_AUTH_FAILED))
    assert 3000 < after(turn, mended, 0.999).delay <= 3600


def test_waiting_counts_more_than_having_much() -> None:
    busy = Busy()
    busy.add("rich", "a", bulk=False, count=1)
    due = [
        Due("rich", "a", "1", "p", bulk=False, late=2 * AGE_SECONDS + 10),
        Due("poor", "b", "2", "p", bulk=False, late=1.0),
    ]
    room = Room(1, 1, 4, 1, {"p": 4})
    assert [one.tenant for one in choose(due, busy, room)] == ["rich"]
    busy = Busy()
    busy.add("rich", "a", bulk=False, count=1)
    assert [one.tenant for one in choose([replace(due[0], late=1.0), due[1]], busy, room)] == ["poor"]


@settings(max_examples=100)
@given(st.lists(st.text(max_size=80), unique=True, max_size=30))
def test_no_two_parts_have_one_name(partitions: list[str]) -> None:
    """Feature: integrations, Property 12: names of schedules."""
    names = {schedule_id("logs", part, past) for part in partitions for past in ("", "ab12")}
    assert len(names) == 2 * len(partitions)
    assert not any("/" in name for name in names)
    by = defaultdict(set)
    for name in names:
        by["@" in name].add(name)
    assert len(by[True]) == len(by[False])
