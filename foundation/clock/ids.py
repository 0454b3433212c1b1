"""Identifiers: unguessable ones for the world, countable ones for tests."""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime
from typing import Protocol


class Ids(Protocol):
    def new(self, prefix: str) -> str:
        """A fresh id such as `ref-3f9c…`; never equal to any other."""


class RandomIds:
    def new(self, prefix: str) -> str:
        return f"{prefix}-{secrets.token_hex(12)}"


class NumberedIds:
    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        self._last += 1
        return f"{prefix}-{self._last}"


def time_ordered_uuid(now: datetime) -> str:
    """A UUID of version 7: random, and sorted by the millisecond in which it was made."""
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return str(uuid.UUID(int=value))
