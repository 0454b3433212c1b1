"""What Prometheus is told of calls and connections. Never by connection or tenant: there may be many thousands."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.registry.broker.outcomes import Outcome
from services.registry.health.rules import Health
from tieline.common.v1.failure_pb2 import FailureKind

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class HealthMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Histogram(
            "tieline_plugin_call_seconds",
            "Calls to plugins, by plugin, operation and outcome (`ok`, or the kind of failure).",
            ["plugin", "operation", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._events = Counter(
            "tieline_plugin_events_total",
            "Events that plugins made of what arrived or was polled.",
            ["plugin"],
            registry=registry,
        )
        self._connections = Gauge(
            "tieline_connections", "Connections by health.", ["health"], registry=registry
        )
        self._alarms = Counter(
            "tieline_alarms_total", "Alarms raised and cleared, by kind.", ["kind", "told"], registry=registry
        )

    def called(self, outcome: Outcome) -> None:
        operation = outcome.operation.partition("/")[0]
        ended = "ok" if outcome.failure is None else _word(outcome.failure.kind)
        self._calls.labels(outcome.plugin, operation, ended).observe(outcome.seconds)
        if outcome.events:
            self._events.labels(outcome.plugin).inc(outcome.events)

    def counted(self, found: Iterable[Health]) -> None:
        tally = Tally(found)
        for health in Health:
            self._connections.labels(health.name.lower()).set(tally[health])

    def told(self, kind: str, *, raised: bool) -> None:
        self._alarms.labels(kind, "raised" if raised else "cleared").inc()


def _word(kind: FailureKind.ValueType) -> str:
    if kind not in FailureKind.values():
        return "unknown"
    return FailureKind.Name(kind).removeprefix("FAILURE_KIND_").lower()
