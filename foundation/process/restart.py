"""When a dead child is started again: a pure state machine, no clock and no chance of its own.

The first restart is immediate. Further ones wait a random time (full jitter) below a bound that doubles from
one second to five minutes, so that a fleet does not restart in step. Ten healthy minutes forgive everything.
Five crashes without a proof of usefulness in between are a crash loop: we stop trying, visibly.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The numbers of the pattern above."""

    base: float = 1.0
    cap: float = 300.0
    healthy_after: float = 600.0
    crash_limit: int | None = 5  # None: never give up


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again after so many seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop trying: so many crashes in a row."""

    crashes: int


class Restarts:
    """The history of one child, as far as the next restart depends on it."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random  # uniform in [0, 1)
        self._ready_since: float | None = None
        self._attempt = 0  # restarts since the last ten healthy minutes: the backoff
        self.crashes = 0  # crashes since the last proof of usefulness: the loop

    def ready(self, now: float) -> None:
        self._ready_since = now

    def proved(self) -> None:
        """It did something useful (a plugin answered a call): what comes next is not a crash loop."""
        self.crashes = 0

    def excuse(self, crashes: int) -> None:
        """So many crashes were not its own fault."""
        self.crashes = max(0, self.crashes - crashes)
        self._attempt = max(0, self._attempt - crashes)

    def forgive(self) -> None:
        """A person said: try again."""
        self.crashes = self._attempt = 0

    def crashed(self, now: float) -> Again | GiveUp:
        since, self._ready_since = self._ready_since, None
        if since is not None and now - since >= self._policy.healthy_after:
            self.forgive()
        self.crashes += 1
        if self._policy.crash_limit is not None and self.crashes >= self._policy.crash_limit:
            return GiveUp(self.crashes)
        self._attempt += 1
        return Again(self._random() * self._bound())

    def _bound(self) -> float:
        if self._attempt == 1:
            return 0.0
        doublings = min(self._attempt - 2, 60)  # beyond any cap, and far from overflowing a float
        return min(self._policy.base * 2.0**doublings, self._policy.cap)
