"""What is measured of operations."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.registry.operations.machine import Begun, CancelWanted, Expired, Happening, RetryWanted
from services.registry.operations.operation import ENDED, Progress, State

_SHOWN = tuple(state for state in State if state not in ENDED or state is State.DEAD_LETTERED)


class OperationMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "tieline_operations",
            "Operations that have not come to their end, by state: queued, running, pending, ambiguous, dead_lettered.",
            ["state"],
            registry=registry,
        )
        self._ended = Counter(
            "tieline_operations_ended_total",
            "Operations that ended, by state: succeeded, failed, cancelled, dead_lettered.",
            ["state"],
            registry=registry,
        )
        self._attempts = Counter(
            "tieline_operation_attempts_total",
            "What attempts came to, and questions about them, by the state in which they left the operation;"
            " away: nothing was done, because somebody was away.",
            ["outcome"],
            registry=registry,
        )
        self._oldest = Gauge(
            "tieline_operations_oldest_queued_seconds",
            "How long ago the oldest operation that is queued was submitted; 0: there is none.",
            registry=registry,
        )

    def happened(self, was: Progress, what: Happening, now: Progress) -> None:
        if not isinstance(what, Begun | Expired | CancelWanted | RetryWanted):
            outcome = "away" if now.away else now.state.value
            self._attempts.labels(outcome=outcome).inc()
        if now.ended and not was.ended:
            self._ended.labels(state=now.state.value).inc()

    def counted(self, states: Mapping[str, int], oldest: float) -> None:
        for state in _SHOWN:
            self._open.labels(state=state.value).set(states.get(state.value, 0))
        self._oldest.set(oldest)
