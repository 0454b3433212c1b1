"""Alarms: a condition that holds for a while is told, and told again when it has been over for a while.

`Alarm` is a pure state machine. Whether people know of it is not its own to say: several replicas look at the
same condition, and the first one tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a condition must hold before it is told, and be over before that is."""

    raising: float = 10.0
    clearing: float = 30.0


class Call(Enum):
    RAISE = auto()
    CLEAR = auto()


class Alarm:
    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: float | None = None
        """When the condition began to differ from what people know."""

    def hear(self, now: float, *, holds: bool, told: bool) -> Call | None:
        """What is to be told now. `told`: people know that it holds, whoever told them."""
        if holds == told:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        waits = self._patience.raising if holds else self._patience.clearing
        if now - self._since < waits:
            return None
        return Call.RAISE if holds else Call.CLEAR
