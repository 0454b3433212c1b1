"""Raises alarms, and clears them: each once, whichever replica is first, in the transaction that remembers it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from foundation.clock import Clock
from foundation.notices import outbox
from foundation.store.unit_of_work import Store
from services.registry.connections.connection import State
from services.registry.health import store, telling
from services.registry.health.alarms import Alarm, Call, Patience
from services.registry.health.measuring import HealthMetrics
from services.registry.health.processes import quarantined
from services.registry.health.rules import Cause, Health, Rules
from services.registry.health.status import Status
from services.registry.health.store import AlarmKey
from services.registry.host.host import Host

log = structlog.get_logger(__name__)

# What the connection itself shows. Other causes have notices of their own: the plugin's, the credential's.
_OWN = {Cause.INSTANCE, Cause.OUTCOMES}
AT_ONCE = Patience(raising=0.0, clearing=0.0)
CONNECTIONS_TOLD = 20


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that does not work now."""

    why: str
    said: Mapping[str, Any] = field(default_factory=dict)


class Alarms:
    def __init__(
        self,
        worker: Store,
        host: Host,
        metrics: HealthMetrics,
        clock: Clock,
        *,
        wake: asyncio.Event,
        rules: Rules | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._worker, self._host, self._metrics, self._clock = worker, host, metrics, clock
        self._wake, self._rules = wake, rules or Rules()
        self._patience = patience or Patience()
        self._alarms: dict[AlarmKey, Alarm] = {}
        self.told: set[AlarmKey] | None = None
        """What people know; None: it is not read yet, and so nothing is told."""

    async def look(self, statuses: Iterable[Status], now: datetime) -> None:
        if self.told is None:
            return
        statuses = list(statuses)
        holding, standing = self._conditions(statuses), {one.name: one for one in statuses}
        monotonic = self._clock.monotonic()
        for key in holding.keys() | self.told | self._alarms.keys():
            quick = key.kind == telling.QUARANTINED
            alarm = self._alarms.setdefault(key, Alarm(AT_ONCE if quick else self._patience))
            match alarm.hear(monotonic, holds=key in holding, told=key in self.told):
                case Call.RAISE:
                    await self._raise(key, holding[key], now)
                case Call.CLEAR:
                    await self._clear(key, now, _became(key, standing.get(key.subject)))
            if key not in holding and key not in self.told:
                del self._alarms[key]

    def _conditions(self, statuses: Iterable[Status]) -> dict[AlarmKey, Condition]:
        found: dict[AlarmKey, Condition] = {}
        served: dict[AlarmKey, list[str]] = defaultdict(list)
        broken = {
            process.name: process.explanation for process in self._host.everything() if quarantined(process)
        }
        for status in statuses:
            connection = status.connection
            said = {"plugin": f"plugins/{connection.plugin}"}
            if status.health is Health.DOWN and status.cause in _OWN:
                key = AlarmKey(connection.tenant, connection.name, telling.DOWN)
                found[key] = Condition(status.explanation, said)
            if status.lag > self._rules.lag and status.health is not Health.PAUSED:
                key = AlarmKey(connection.tenant, connection.name, telling.LAGGING)
                why = f"the oldest delivery has waited for {status.lag:.0f} s"
                found[key] = Condition(why, said | {"waiting": status.backlog.waiting})
            if connection.plugin in broken and status.cause is Cause.PROCESS:
                key = AlarmKey(connection.tenant, f"plugins/{connection.plugin}", telling.QUARANTINED)
                served[key].append(connection.name)
        for key, names in served.items():
            why = broken[key.subject.removeprefix("plugins/")]
            found[key] = Condition(
                why, {"connections": sorted(names)[:CONNECTIONS_TOLD], "count": len(names)}
            )
        return found

    async def _raise(self, key: AlarmKey, condition: Condition, now: datetime) -> None:
        async with self._worker.across_tenants() as work:
            since = await store.raise_alarm(work, key, now)
            if since is not None:
                event = telling.trouble(
                    key.kind,
                    key.tenant,
                    key.subject,
                    condition.why,
                    since=since,
                    now=now,
                    said=condition.said,
                )
                await outbox.add(work, event)
        self._known(key, raised=True, first=since is not None)

    async def _clear(self, key: AlarmKey, now: datetime, became: str) -> None:
        async with self._worker.across_tenants() as work:
            since = await store.clear_alarm(work, key)
            if since is not None:
                event = telling.over(
                    key.kind, key.tenant, key.subject, since=since, now=now, said={}, became=became
                )
                await outbox.add(work, event)
        self._known(key, raised=False, first=since is not None)

    def _known(self, key: AlarmKey, *, raised: bool, first: bool) -> None:
        told = self.told if self.told is not None else set()
        self.told = told | {key} if raised else told - {key}
        if first:
            self._metrics.told(key.kind, raised=raised)
            self._wake.set()
            log.warning("an alarm", kind=key.kind, subject=key.subject, raised=raised)


def _became(key: AlarmKey, status: Status | None) -> str:
    """What ended an alarm, where that is not that all is well again."""
    if key.subject.startswith("plugins/"):
        return ""
    if status is None or status.connection.state is State.DELETING:
        return "is deleted"
    resting = status.connection.state in (State.PAUSED, State.SUSPENDED)
    return f"is {status.connection.state.value}" if resting else ""
