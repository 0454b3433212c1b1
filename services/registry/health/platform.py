"""What of the platform is limited, and what people notice of it: one line each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.telemetry import Readiness
from foundation.telemetry.limits import EFFECTS
from services.registry.connections.picture import Picture
from services.registry.health.processes import health_of
from services.registry.health.rules import Health
from services.registry.host.host import Host

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Limitation:
    component: str
    reason: str
    effect: str
    since: datetime


class Platform:
    """`async with` it. `readiness` holds a check for each component, by its name in `EFFECTS`."""

    def __init__(self, readiness: Readiness, host: Host, picture: Picture, clock: Clock) -> None:
        self._readiness, self._host = readiness, host
        self._picture, self._clock = picture, clock
        self._task: asyncio.Task[None] | None = None
        self.limitations: list[Limitation] = []
        """By component."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="look at the platform")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def fresh(self) -> list[Limitation]:
        """What is limited now: what is said to be is looked at once more, because most of it passes soon."""
        if self.limitations:
            await self._look()
        return self.limitations

    async def _keep(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:  # a task's border
                log.exception("the platform could not be looked at")
            await self._clock.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        report = await self._readiness.report()
        away = {
            name: (_reason(name, state), EFFECTS.get(name, ""))
            for name, state in report.dependencies.items()
            if state != "ok"
        }
        found = away | dict(self._plugins())
        since = {one.component: one.since for one in self.limitations}
        now = self._clock.now()
        self.limitations = [
            Limitation(component, reason, effect, since.get(component, now))
            for component, (reason, effect) in sorted(found.items())
        ]

    def _plugins(self) -> Iterator[tuple[str, tuple[str, str]]]:
        for process in self._host.everything():
            health, says = health_of(process)
            if health is Health.DOWN:
                users = [
                    connection
                    for connection in self._picture.snapshot.content.values()
                    if connection.plugin == process.name
                ]
                tenants = len({connection.tenant for connection in users})
                effect = f"what arrives for its {len(users)} connection(s) of {tenants} tenant(s) waits; all others go on"
                yield f"plugins/{process.name}", (says, effect)


def _reason(component: str, sentence: str) -> str:
    """Without what stands beside it anyway."""
    return sentence.removeprefix(f"{component} cannot be reached: ").rstrip(".")
