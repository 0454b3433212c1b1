"""What became of calls, for whoever judges health by what happens anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tieline.common.v1.failure_pb2 import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One call that reached its plugin, as one connection met it."""

    connection: str
    plugin: str
    plugin_version: str
    operation: str
    seconds: float
    failure: Failure | None
    inputs: int = 0
    """Deliveries or records that were handed in."""
    events: int = 0
    """What they became."""


class Listener(Protocol):
    def heard(self, outcome: Outcome) -> None:
        """Called in the way of calls: it takes a note and returns."""


class Deaf:
    """Judges nothing."""

    def heard(self, outcome: Outcome) -> None: ...
