"""How long something waits before it is tried again: full jitter below a growing, capped limit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tieline.common.v1.failure_pb2 import Failure


@dataclass(frozen=True, slots=True)
class Backoff:
    base: float = 0.2
    cap: float = 15.0
    floor: float = 0.05
    longest: float = 3600.0
    """A provider may ask for patience, not for ever."""
    random: random.Random = field(default_factory=random.Random)

    def seconds(self, attempts: int, failure: Failure) -> float:
        """`attempts` have failed. Never earlier than the failure asks for."""
        asked = float(failure.retry_after.seconds) + failure.retry_after.nanos / 1e9  # a timedelta holds less
        limit = min(self.cap, self.base * 2.0 ** min(attempts, 30))
        return min(self.longest, max(self.floor, asked) + self.random.uniform(0, limit))
