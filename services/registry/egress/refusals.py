"""What a process tried to reach and may not: kept for whoever wonders why its plugin does not work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from foundation.clock import Clock

KEPT = 20
LONGEST = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    address: str
    reason: str
    count: int
    last: datetime


class Refusals:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, str], Refusal] = {}
        self.total = 0

    def __iter__(self) -> Iterator[Refusal]:
        """The latest first."""
        return iter(list(reversed(self._kept.values())))

    def add(self, address: str, reason: str) -> Refusal:
        shown = "".join(mark if mark.isprintable() else "?" for mark in address[:LONGEST])
        self.total += 1
        before = self._kept.pop((shown, reason), None)
        refusal = Refusal(shown, reason, before.count + 1 if before else 1, self._clock.now())
        self._kept[shown, reason] = refusal
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return refusal
