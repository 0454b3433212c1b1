"""What this replica knows of connections by itself: its calls, its circuits and throttles, its processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

from foundation.clock import Clock
from services.registry.broker.calling import Calls
from services.registry.broker.circuits import State as CircuitState
from services.registry.broker.serving import Served
from services.registry.connections.connection import Connection
from services.registry.connections.picture import Connections
from services.registry.health.ear import Ear
from services.registry.health.processes import process_health
from services.registry.health.reports import CircuitReport, Report, ThrottleReport
from services.registry.health.rules import Health, Rules
from services.registry.host.host import Host


class Gathering:
    def __init__(self, ear: Ear, host: Host, calls: Calls, clock: Clock, rules: Rules | None = None) -> None:
        self._ear, self._host, self._calls, self._clock = ear, host, calls, clock
        self._rules = rules or Rules()

    def reports(self, connections: Connections) -> Mapping[str, Report]:
        """Of connections of which something is known here."""
        for name in self._ear.names():
            if name not in connections:
                self._ear.forget(name)
        circuits = self._circuits()
        processes: dict[tuple[str, str, str], tuple[Health, str]] = {}
        found: dict[str, Report] = {}
        for connection in connections.values():
            served = connection.served(connection.applied_revision)
            where = (served.plugin, served.version_range, served.cell)
            if where not in processes:
                processes[where] = process_health(self._host, served)
            report = self._report(connection, served, processes[where], circuits.get(connection.name, ()))
            if report is not None:
                found[connection.name] = report
        return found

    def _report(
        self,
        connection: Connection,
        served: Served,
        process: tuple[Health, str],
        circuits: list[CircuitReport] | tuple[()],
    ) -> Report | None:
        heard = self._ear.of(connection.name)
        health, says = process
        throttles = self._throttles(served)
        if heard is None:
            if health is Health.UNKNOWN and not circuits and not throttles:
                return None
            return Report(process=health, process_says=says, circuits=circuits, throttles=throttles)
        traffic = heard.window.traffic(self._clock.monotonic())
        return Report(
            process=health,
            process_says=says,
            outcomes=self._rules.outcomes(traffic, heard.window.streak),
            last_failure=heard.last_failure,
            last_event_time=heard.last_event_time,
            calls=traffic.calls,
            failures=traffic.failures,
            inputs=traffic.inputs,
            events=traffic.events,
            times={str(step): count for step, count in sorted(traffic.times.items())},
            circuits=circuits,
            throttles=throttles,
        )

    def _circuits(self) -> Mapping[str, list[CircuitReport]]:
        """By connection. Those of whole processes are the processes' affair."""
        now = self._clock.now()
        found: dict[str, list[CircuitReport]] = defaultdict(list)
        for key, state, seconds in self._calls.circuits.not_closed():
            if isinstance(key, tuple):
                connection, operation = key
                found[connection].append(
                    CircuitReport(
                        operation=operation,
                        half_open=state is CircuitState.HALF_OPEN,
                        retry_time=now + timedelta(seconds=seconds),
                    )
                )
        return found

    def _throttles(self, served: Served) -> list[ThrottleReport]:
        now = self._clock.now()
        return [
            ThrottleReport(reach=scope.reach, bucket=scope.bucket, until=now + timedelta(seconds=seconds))
            for scope, seconds in self._calls.throttles.empty(served)
        ]
