"""Refusals are recorded too, and nobody can fill the store by being refused.

The first of a kind is recorded before it is answered. Those like it within the same minute are counted, and one
record with the count is written when the minute is over. Kinds have a bound as well: who is refused in ever new
ways is counted as a crowd.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from services.credentials.audit.entry import Entry
from services.credentials.audit.recorder import Recorder

log = structlog.get_logger(__name__)

WINDOW_SECONDS = 60.0
KINDS = 1000
"""Of refusals that are told apart within a window; the rest are recorded as one."""
CROWD = "of many more kinds"


@dataclass(slots=True)
class _Repeated:
    entry: Entry
    times: int = 0
    """After the first."""


class Denials:
    """`async with` it, inside the recorder's block."""

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock
        self._window: dict[tuple[object, ...], _Repeated] = {}
        self._task: asyncio.Task[None] | None = None

    async def record(self, denied: Iterable[Entry]) -> None:
        """Those that are new within this window are durable at the end, the others are counted."""
        new: dict[tuple[object, ...], Entry] = {}
        for entry in denied:
            key, entry_or_crowd = self._place(entry)
            if key in self._window:
                self._window[key].times += 1
            else:
                self._window[key] = _Repeated(entry_or_crowd)
                new[key] = entry_or_crowd
        if not new:
            return
        durable = False
        try:
            await self._recorder.record(*new.values())
            durable = True
        finally:
            if not durable:  # then the next of its kind is the first again
                for key in new:
                    self._window.pop(key, None)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="count refusals")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        await self._close_window()

    def _place(self, entry: Entry) -> tuple[tuple[object, ...], Entry]:
        key = _kind(entry)
        if key in self._window or len(self._window) < KINDS:
            return key, entry
        crowd = replace(
            entry, resource=f"tenants/{entry.tenant}" if entry.tenant else "", details={"kinds": CROWD}
        )
        return _kind(crowd), crowd

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(WINDOW_SECONDS)
            await self._close_window()

    async def _close_window(self) -> None:
        window, self._window = self._window, {}
        repeated = [
            replace(one.entry, details={**one.entry.details, "repeated": str(one.times)})
            for one in window.values()
            if one.times
        ]
        if not repeated:
            return
        try:
            await self._recorder.record(*repeated)
        except Problem as problem:
            log.warning("refusals were not counted", kinds=len(repeated), why=problem.sentence)


def _kind(entry: Entry) -> tuple[object, ...]:
    return (entry.tenant, entry.actor, entry.action, entry.resource, *sorted(entry.details.items()))
