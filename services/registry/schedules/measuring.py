"""What is measured of polling."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.registry.polling.poller import Polled
from services.registry.schedules.schedule import State

_LATE = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_TOOK = (0.05, 0.25, 1, 5, 15, 30, 60, 90, 120, 300)


class PollMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._polls = Counter(
            "tieline_polls_total",
            "Polls that ended, by outcome: caught_up, limit, throttled, held, taken_over, cursor_invalid, failed.",
            ["outcome"],
            registry=registry,
        )
        self._records = Counter(
            "tieline_polled_records_total",
            "Records that polls brought into the inbox, repeats among them.",
            registry=registry,
        )
        self._late = Histogram(
            "tieline_poll_lateness_seconds",
            "How long after its time a poll began.",
            buckets=_LATE,
            registry=registry,
        )
        self._took = Histogram(
            "tieline_poll_seconds", "How long a poll took.", buckets=_TOOK, registry=registry
        )
        self._under_way = Gauge(
            "tieline_polls_under_way", "Polls under way in this replica.", registry=registry
        )
        self._schedules = Gauge(
            "tieline_schedules",
            "Schedules of all replicas by state: waiting, running, throttled, failing, stopped, done.",
            ["state"],
            registry=registry,
        )

    def began(self, late: float) -> None:
        self._late.observe(max(late, 0.0))
        self._under_way.inc()

    def ended(self, polled: Polled | None, seconds: float) -> None:
        """None: it was broken off."""
        self._under_way.dec()
        if polled is not None:
            self._polls.labels(outcome=polled.ended.replace(" ", "_")).inc()
            self._records.inc(polled.records)
            self._took.observe(seconds)

    def stand(self, states: Mapping[str, int]) -> None:
        for state in State:
            self._schedules.labels(state=state.value).set(states.get(state.value, 0))
