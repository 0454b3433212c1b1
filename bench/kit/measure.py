"""What a bench hands back, and how to take it fairly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Line:
    """One thing that was measured, several times, in one run."""

    what: str
    values: list[float]
    unit: str

    @property
    def median(self) -> float:
        return median(self.values)


def interleaved(
    variants: Mapping[str, Callable[[], float]], *, unit: str, repetitions: int = 5
) -> list[Line]:
    """Takes turns, so that a machine that gets slower or warmer does so for every variant alike."""
    taken: dict[str, list[float]] = {what: [] for what in variants}
    for _ in range(repetitions):
        for what, measure in variants.items():
            taken[what].append(measure())
    return [Line(what, values, unit) for what, values in taken.items()]
