"""What is called healthy: the rules by themselves, held against any history of outcomes on a clock that the test turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from foundation.notices import stream
from services.mapper.notices import read
from services.registry.broker.circuits import Circuits, Policy, Result, State, result_of
from services.registry.broker.outcomes import Outcome
from services.registry.connections.connection import Application, Connection
from services.registry.connections.connection import State as ConnectionState
from services.registry.health import telling
from services.registry.health.alarms import Alarm, Call, Patience
from services.registry.health.ear import Ear
from services.registry.health.measuring import HealthMetrics
from services.registry.health.reports import Report, merged
from services.registry.health.rules import Cause, Findings, Health, Rules, failed, judge, together
from services.registry.health.window import SECONDS, SLICE, Traffic, Window, step_of, upper
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.registry.v1 import connections_pb2 as pb

RULES = Rules()
NAME = "tenants/acme/connections/main"
START = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = [None, *FailureKind.values()]


@dataclass
class Hand:
    """A clock that is turned by hand."""

    elapsed: float = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed)

    def monotonic(self) -> float:
        return self.elapsed

    async def sleep(self, seconds: float) -> None:
        self.elapsed += seconds


@dataclass(frozen=True)
class Past:
    at: float
    kind: int | None
    seconds: float


def connection(**fields: object) -> Connection:
    made = Connection(
        tenant="acme",
        id="main",
        instance="i",
        wanted=pb.Connection(plugin="plugins/one"),
        settings_version="1.0.0",
        revision=1,
        applied_revision=1,
        state=ConnectionState.ACTIVE,
        state_time=START,
        application=Application.APPLIED,
        application_failure=None,
        resolved_version="1.0.0",
        endpoints={},
        create_time=START,
        update_time=START,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


# What the specification says, told in another way: from the whole history, each time anew.

AGAINST = {
    FailureKind.FAILURE_KIND_UNSPECIFIED,
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_AUTH_FAILED,
    FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    FailureKind.FAILURE_KIND_INVALID_CONFIG,
    FailureKind.FAILURE_KIND_INTERNAL,
    FailureKind.FAILURE_KIND_NOT_PREPARED,
}


def in_window(history: Sequence[Past], now: float) -> list[Past]:
    """Slices of ten seconds, the present one and the twenty-nine before it."""
    first = math.floor(now / 10) * 10 - 290
    return [past for past in history if past.at >= first]


def expected_health(history: Sequence[Past], now: float) -> Health:
    seen = in_window(history, now)
    if not seen:
        return Health.UNKNOWN
    bad = [past for past in seen if past.kind in AGAINST]
    row = 0
    for past in reversed(history):
        if past.kind == FailureKind.FAILURE_KIND_RATE_LIMITED:
            continue
        if past.kind not in AGAINST:
            break
        row += 1
    if row >= 5 or (len(seen) >= 10 and len(bad) * 2 >= len(seen)):
        return Health.DOWN
    if bad and (len(seen) < 10 or len(bad) * 20 >= len(seen)):
        return Health.DEGRADED
    return Health.OK


class Story(RuleBasedStateMachine):
    """Feature: integrations, Property 10 (health): for any outcomes, state, rates and circuit are as specified."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Hand()
        self.ear = Ear(self.clock, HealthMetrics(CollectorRegistry()))
        self.circuits = Circuits(self.clock, Policy(failures=5, pause=1.0, longest=60.0))
        self.history: list[Past] = []
        self.row = 0
        self.opened_at: float | None = None
        self.pause = 1.0

    @rule(kind=st.sampled_from(KINDS), seconds=st.floats(0.0002, 100), times=st.integers(1, 6))
    def called(self, kind: int | None, seconds: float, times: int) -> None:
        for _ in range(times):
            self._call(kind, seconds)

    def _call(self, kind: int | None, seconds: float) -> None:
        ticket = self.circuits.admit(NAME)
        if isinstance(ticket, float):
            assert self.opened_at is not None
            assert ticket == pytest.approx(self.opened_at + self.pause - self.clock.elapsed)
            return
        failure = None if kind is None else Failure(kind=FailureKind.ValueType(kind), message="m")
        result = result_of(failure)
        self.circuits.settle(NAME, ticket, result)
        self.history.append(Past(self.clock.elapsed, kind, seconds))
        self._model(result)
        self.ear.heard(
            Outcome(
                connection=NAME,
                plugin="one",
                plugin_version="1.0.0",
                operation="TransformData",
                seconds=seconds,
                failure=failure,
                inputs=3,
                events=0 if failure else 2,
            )
        )

    def _model(self, result: Result) -> None:
        """Five in a row open it; then one call may try after each pause, which doubles as long as it fails."""
        if self.opened_at is not None:
            if result is Result.BAD:
                self.opened_at, self.pause = self.clock.elapsed, min(60.0, self.pause * 2)
            elif result is Result.GOOD:
                self.opened_at, self.row, self.pause = None, 0, 1.0
            else:
                self.opened_at = (
                    self.clock.elapsed - self.pause
                )  # it told nothing: the next one may try at once
        elif result is Result.BAD:
            self.row += 1
            if self.row == 5:
                self.opened_at, self.pause = self.clock.elapsed, 1.0
        elif result is Result.GOOD:
            self.row = 0

    @rule(
        seconds=st.one_of(
            st.floats(0.01, 30), st.sampled_from([1.0, 2.0, 10.0, 60.0, 299.9, 300.0, 310.0, 4000.0])
        )
    )
    def pass_time(self, seconds: float) -> None:
        self.clock.elapsed += seconds

    @invariant()
    def rates_are_as_they_were(self) -> None:
        heard = self.ear.of(NAME)
        if heard is None:
            assert not self.history
            return
        seen = in_window(self.history, self.clock.elapsed)
        traffic = heard.window.traffic(self.clock.elapsed)
        assert traffic.calls == len(seen)
        assert traffic.failures == sum(past.kind in AGAINST for past in seen)
        assert traffic.inputs == 3 * len(seen)
        assert traffic.events == 2 * sum(past.kind is None for past in seen)
        for share in (0.5, 0.99):
            times = sorted(past.seconds for past in seen)
            if times:
                truth = times[math.ceil(share * len(times)) - 1]
                assert truth <= traffic.quantile(share) * 1.000001
                assert traffic.quantile(share) <= max(truth, 0.0001) * 1.0906

    @invariant()
    def health_is_as_specified(self) -> None:
        heard = self.ear.of(NAME)
        if heard is not None:
            traffic = heard.window.traffic(self.clock.elapsed)
            found = RULES.outcomes(traffic, heard.window.streak)
            assert found is expected_health(self.history, self.clock.elapsed)

    @invariant()
    def the_circuit_is_as_specified(self) -> None:
        told = {key: (state, seconds) for key, state, seconds in self.circuits.not_closed()}
        if self.opened_at is None or self.clock.elapsed - (self.opened_at + self.pause) > 60.0:
            assert not told  # it is closed, or nobody wanted to know for long
        else:
            state, seconds = told[NAME]
            assert state is State.OPEN
            assert seconds == pytest.approx(max(0.0, self.opened_at + self.pause - self.clock.elapsed))

    @invariant()
    def a_report_says_the_same_after_its_journey(self) -> None:
        heard = self.ear.of(NAME)
        if heard is None:
            return
        traffic = heard.window.traffic(self.clock.elapsed)
        report = Report(
            calls=traffic.calls,
            failures=traffic.failures,
            inputs=traffic.inputs,
            events=traffic.events,
            times={str(step): count for step, count in traffic.times.items()},
            outcomes=RULES.outcomes(traffic, heard.window.streak),
        )
        again = Report.decode(report.encode())
        assert again.traffic == traffic
        both = merged([again, again])
        assert both.calls == 2 * traffic.calls
        assert both.traffic.quantile(0.5) == traffic.quantile(0.5)
        assert both.outcomes is report.outcomes


Story.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_health_follows_its_specification = Story.TestCase


def test_every_kind_of_failure_is_judged_as_the_contract_reads_it() -> None:
    judged = {kind: failed(Failure(kind=FailureKind.ValueType(kind))) for kind in FailureKind.values()}
    assert {kind for kind, against in judged.items() if against} == AGAINST
    assert {kind for kind, against in judged.items() if against is None} == {
        FailureKind.FAILURE_KIND_RATE_LIMITED
    }
    assert failed(None) is False


@given(st.lists(st.floats(0, 200), min_size=1, max_size=50))
def test_a_time_lies_in_its_step(times: list[float]) -> None:
    for seconds in times:
        assert seconds <= upper(step_of(seconds)) * 1.0000001
        assert step_of(seconds) == 0 or upper(step_of(seconds) - 1) <= seconds


def test_what_left_the_window_is_gone_and_what_is_in_it_is_not() -> None:
    window = Window()
    window.note(5.0, failed=True, seconds=0.1)
    window.note(SLICE + 5.0, failed=False, seconds=0.1)
    assert window.traffic(SECONDS - 0.1).calls == 2
    assert window.traffic(SECONDS + 0.1).calls == 1
    assert window.empty(SECONDS + SLICE)


found = st.builds(
    Findings,
    process=st.sampled_from(list(Health)[:4]),
    instance=st.sampled_from(list(Health)[:4]),
    outcomes=st.sampled_from(list(Health)[:4]),
    traffic=st.just(Traffic()),
    circuits=st.sampled_from([(), ("TransformData",)]),
    lag=st.sampled_from([0.0, 1000.0]),
)


@given(found, st.sampled_from(list(Application)))
@settings(max_examples=300)
def test_the_worst_decides_and_says_why(all_of_it: Findings, application: Application) -> None:
    """Feature: integrations, Property 10 (health): no part that is worse is hidden by one that is better."""
    verdict = judge(connection(application=application), all_of_it, RULES)
    parts = [all_of_it.process, all_of_it.instance, all_of_it.outcomes]
    worst = max(parts)
    if worst is Health.DOWN:
        assert verdict.health is Health.DOWN
    elif worst is Health.DEGRADED or all_of_it.circuits or all_of_it.lag or application is Application.FAILED:
        assert verdict.health is Health.DEGRADED
    else:
        assert verdict.health is (Health.OK if Health.OK in parts else Health.UNKNOWN)
    assert bool(verdict.explanation) is (verdict.health is not Health.OK)


@pytest.mark.parametrize(
    ("state", "health"),
    [
        (ConnectionState.PAUSED, Health.PAUSED),
        (ConnectionState.DELETING, Health.PAUSED),
        (ConnectionState.SUSPENDED, Health.DOWN),
    ],
)
def test_what_rests_is_judged_by_that(state: ConnectionState, health: Health) -> None:
    well = Findings(process=Health.OK, instance=Health.OK, outcomes=Health.OK, traffic=Traffic())
    failure = Failure(message="somebody said so")
    verdict = judge(connection(state=state, failure=failure), well, RULES)
    assert (verdict.health, verdict.cause) == (health, Cause.STATE)


def test_what_was_never_applied_says_what_it_waits_for() -> None:
    nothing = Findings(traffic=Traffic())
    waits = connection(state=ConnectionState.PENDING, application=Application.PENDING)
    assert judge(waits, nothing, RULES).health is Health.UNKNOWN
    why = Failure(message="the plugin is away")
    assert "the plugin is away" in judge(replace(waits, application_failure=why), nothing, RULES).explanation
    refused = replace(waits, application=Application.FAILED, application_failure=why)
    assert judge(refused, nothing, RULES).health is Health.DOWN


@given(st.lists(st.sampled_from(list(Health)[:4]), max_size=5))
def test_replicas_that_differ_are_half_well(parts: list[Health]) -> None:
    known = {part for part in parts if part is not Health.UNKNOWN}
    expected = Health.UNKNOWN if not known else known.pop() if len(known) == 1 else Health.DEGRADED
    assert together(parts) is expected


class Ringing(RuleBasedStateMachine):
    """Feature: integrations, Property 10 (alarms): told once when it has held long enough, and once when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.alarm, self.now, self.told = Alarm(Patience(10.0, 30.0)), 0.0, False
        self.differs_since: float | None = None

    @rule(
        condition=st.sampled_from(["holds", "is over"]),
        seconds=st.sampled_from([0.0, 1.0, 5.0, 9.9, 10.0, 29.0, 30.0, 100.0]),
    )
    def look(self, condition: str, seconds: float) -> None:
        holds = condition == "holds"
        self.now += seconds
        call = self.alarm.hear(self.now, holds=holds, told=self.told)
        if holds == self.told:
            self.differs_since = None
            assert call is None
            return
        self.differs_since = self.now if self.differs_since is None else self.differs_since
        waited = self.now - self.differs_since
        if waited >= (10.0 if holds else 30.0):
            assert call is (Call.RAISE if holds else Call.CLEAR)
            self.told = holds
        else:
            assert call is None


Ringing.TestCase.settings = settings(max_examples=200, deadline=None)
test_an_alarm_rings_as_specified = Ringing.TestCase


@pytest.mark.parametrize("kind", [telling.DOWN, telling.LAGGING, telling.SUSPENDED, telling.QUARANTINED])
def test_every_alarm_and_its_end_may_be_stored_as_events(kind: str) -> None:
    """However long the reason is: the mapper refuses what does not fit, and nobody would be told."""
    quarantined = kind == telling.QUARANTINED
    subject = "plugins/one" if quarantined else NAME
    said: dict[str, object] = {"plugin": "plugins/one", "waiting": 3, "connections": [NAME] * 20, "count": 99}
    told = telling.trouble(kind, "acme", subject, "why " * 400, since=START, now=START, said=said)
    over = telling.over(kind, "acme", subject, since=START, now=START + timedelta(hours=1), said={})
    for event in (told, over):
        news = read(stream.subject("registry", "acme"), event.SerializeToString(), START)
        assert news.tenant == "acme"
    assert told.id != over.id
    assert told.failure.key == over.failure.key
    later = telling.trouble(kind, "acme", subject, "why", since=START + timedelta(1), now=START, said={})
    assert later.id != told.id, "another trouble of the same kind is another event"
