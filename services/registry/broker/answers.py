"""What plugins have answered, kept as long as they say, and questions that are on their way.

Bounded by entries and by bytes; what was not asked for longest goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from foundation.clock import Clock
from tieline.plugin.v1.lookup_pb2 import LookupAnswer

ENTRIES = 50_000
BYTES = 64 * 1024 * 1024
OVERHEAD = 300
"""What an entry costs beside its answer."""


@dataclass(frozen=True, slots=True)
class Kept:
    raw: bytes
    until: float


class Answers:
    def __init__(self, clock: Clock, entries: int = ENTRIES, size: int = BYTES) -> None:
        self._clock, self._entries, self._bytes = clock, entries, size
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._weight = 0
        self.under_way: dict[bytes, asyncio.Future[LookupAnswer | None]] = {}
        """Whoever asks the same meanwhile waits here; None: whoever asked gave up, ask yourself."""

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, question: bytes) -> LookupAnswer | None:
        kept = self._kept.get(question)
        if kept is None:
            return None
        if kept.until <= self._clock.monotonic():
            self._drop(question)
            return None
        self._kept.move_to_end(question)
        return LookupAnswer.FromString(kept.raw)

    def keep(self, question: bytes, answer: LookupAnswer, seconds: float) -> None:
        raw = answer.SerializeToString()
        self._drop(question)
        if seconds <= 0 or len(raw) + OVERHEAD > self._bytes:
            return
        self._kept[question] = Kept(raw, self._clock.monotonic() + seconds)
        self._weight += len(raw) + OVERHEAD
        while len(self._kept) > self._entries or self._weight > self._bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, question: bytes) -> None:
        kept = self._kept.pop(question, None)
        if kept is not None:
            self._weight -= len(kept.raw) + OVERHEAD
