"""Hears what becomes of every call, in its way: takes a note, and returns."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime

from foundation.clock import Clock
from services.registry.broker.outcomes import Outcome
from services.registry.health.measuring import HealthMetrics
from services.registry.health.rules import failed
from services.registry.health.window import Window
from tieline.common.v1.failure_pb2 import Failure, FailureKind

MOST = 20_000
"""Connections that are remembered; the one that was quiet for longest is forgotten first."""


class Heard:
    """What one connection's calls came to in this process."""

    def __init__(self) -> None:
        self.window = Window()
        self.last_failure = ""
        self.last_event_time: datetime | None = None


class Ear:
    def __init__(self, clock: Clock, metrics: HealthMetrics) -> None:
        self._clock, self.metrics = clock, metrics
        self._heard: OrderedDict[str, Heard] = OrderedDict()
        self.denied: dict[str, Failure] = {}
        """Connections whose credential is good and not allowed to do what was asked, until somebody takes them."""

    def heard(self, outcome: Outcome) -> None:
        one = self._heard.get(outcome.connection)
        if one is None:
            one = self._heard[outcome.connection] = Heard()
            if len(self._heard) > MOST:
                self._heard.popitem(last=False)
        self._heard.move_to_end(outcome.connection)
        against = failed(outcome.failure)
        one.window.note(
            self._clock.monotonic(),
            failed=against,
            seconds=outcome.seconds,
            inputs=outcome.inputs,
            events=outcome.events,
        )
        if outcome.events:
            one.last_event_time = self._clock.now()
        if outcome.failure is not None and against:
            one.last_failure = outcome.failure.message or outcome.failure.reason
            if outcome.failure.kind == FailureKind.FAILURE_KIND_PERMISSION_DENIED:
                self.denied[outcome.connection] = outcome.failure
        self.metrics.called(outcome)

    def of(self, connection: str) -> Heard | None:
        return self._heard.get(connection)

    def forget(self, connection: str) -> None:
        self._heard.pop(connection, None)
        self.denied.pop(connection, None)

    def names(self) -> list[str]:
        return list(self._heard)
