"""What calls were like in the last five minutes: counts, and how long they took. No clock of its own.

Times fall into steps that grow by an eighth of a doubling, so a quantile is at most 9 % above the truth and a
window is small however many calls there are. Windows of several replicas add up.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

SECONDS = 300.0
SLICE = 10.0
"""Calls leave the window in slices of this many seconds."""
SHORTEST = 0.0001
_STEPS = 8


@dataclass(slots=True)
class Traffic:
    """Sums of calls."""

    calls: int = 0
    failures: int = 0
    inputs: int = 0
    events: int = 0
    times: Counter[int] = field(default_factory=Counter)
    """Calls by step of their time."""

    def add(self, other: Traffic) -> None:
        self.calls += other.calls
        self.failures += other.failures
        self.inputs += other.inputs
        self.events += other.events
        self.times.update(other.times)

    @classmethod
    def of(cls, parts: Iterable[Traffic]) -> Self:
        total = cls()
        for part in parts:
            total.add(part)
        return total

    def quantile(self, share: float) -> float:
        """So many of the calls took at most this many seconds; 0 where there were none."""
        left = math.ceil(share * sum(self.times.values()))
        for step in sorted(self.times):
            left -= self.times[step]
            if left <= 0:
                return upper(step)
        return 0.0


class Window:
    def __init__(self) -> None:
        self._slices: deque[tuple[int, Traffic]] = deque()
        self.streak = 0
        """Failures since the last success."""

    def note(
        self, now: float, *, failed: bool | None, seconds: float, inputs: int = 0, events: int = 0
    ) -> None:
        """One call. `failed` None: it says nothing of whether the connection works."""
        number = int(now // SLICE)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append((number, Traffic()))
            self._forget(now)
        traffic = self._slices[-1][1]
        traffic.calls += 1
        traffic.failures += bool(failed)
        traffic.inputs += inputs
        traffic.events += events
        traffic.times[step_of(seconds)] += 1
        if failed is not None:
            self.streak = self.streak + 1 if failed else 0

    def traffic(self, now: float) -> Traffic:
        self._forget(now)
        return Traffic.of(part for _, part in self._slices)

    def empty(self, now: float) -> bool:
        self._forget(now)
        return not self._slices

    def _forget(self, now: float) -> None:
        oldest = int(now // SLICE) - int(SECONDS // SLICE)
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()


def step_of(seconds: float) -> int:
    return 0 if seconds <= SHORTEST else math.ceil(_STEPS * math.log2(seconds / SHORTEST))


def upper(step: int) -> float:
    """The longest time of a step."""
    return float(SHORTEST * 2 ** (step / _STEPS))


def times_of(counts: Mapping[str, int]) -> Counter[int]:
    """As they travel in JSON, whose keys are texts."""
    return Counter({int(step): count for step, count in counts.items()})
