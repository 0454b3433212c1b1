"""What one replica knows of a connection, as the others are told it: a picture of its own calls and processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from services.registry.health.rules import Health, together
from services.registry.health.window import Traffic, times_of


class CircuitReport(msgspec.Struct, frozen=True, kw_only=True):
    operation: str
    half_open: bool
    retry_time: datetime


class ThrottleReport(msgspec.Struct, frozen=True, kw_only=True):
    reach: int
    bucket: str
    until: datetime


class Report(msgspec.Struct, frozen=True, kw_only=True):
    process: Health = Health.UNKNOWN
    process_says: str = ""
    outcomes: Health = Health.UNKNOWN
    last_failure: str = ""
    last_event_time: datetime | None = None
    calls: int = 0
    failures: int = 0
    inputs: int = 0
    events: int = 0
    times: Mapping[str, int] = {}
    circuits: Sequence[CircuitReport] = ()
    throttles: Sequence[ThrottleReport] = ()

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes) -> Report:
        return msgspec.json.decode(content, type=cls)

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.calls, self.failures, self.inputs, self.events, times_of(self.times))


def merged(reports: Sequence[Report]) -> Report:
    """What all of them know together."""
    if len(reports) == 1:
        return reports[0]
    traffic = Traffic.of(report.traffic for report in reports)
    worst = max(reports, key=lambda report: report.process, default=Report())
    failing = max(reports, key=lambda report: report.outcomes, default=Report())
    return Report(
        process=together(report.process for report in reports),
        process_says=worst.process_says,
        outcomes=together(report.outcomes for report in reports),
        last_failure=failing.last_failure,
        last_event_time=latest(report.last_event_time for report in reports),
        calls=traffic.calls,
        failures=traffic.failures,
        inputs=traffic.inputs,
        events=traffic.events,
        times={str(step): count for step, count in traffic.times.items()},
        circuits=[one for report in reports for one in report.circuits],
        throttles=[one for report in reports for one in report.throttles],
    )


def latest(moments: Iterable[datetime | None]) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)
