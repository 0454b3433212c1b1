"""Rate limits: what a provider asked to be patient about waits, and only that.

A plugin says which bucket is empty, after the fact. So an operation waits for the buckets that it was seen to
drink from, and everything within reach waits for a bucket without a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foundation.clock import Clock
from services.registry.broker.serving import Served
from tieline.common.v1.failure_pb2 import Failure, ThrottleScope

DEFAULT_SECONDS = 5.0
"""Where a plugin does not say how long."""
LONGEST_SECONDS = 3600.0
"""A provider may ask for patience, not for ever."""
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Bucket:
    reach: str
    """An instance, or a plugin for all of its instances."""
    name: str


@dataclass(slots=True)
class Empty:
    until: float
    met_by: set[str]
    """Operations that ran into it."""


class Throttles:
    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._empty: dict[str, dict[str, Empty]] = {}
        """Buckets by name, by reach."""

    def __len__(self) -> int:
        return sum(map(len, self._empty.values()))

    def hold(self, served: Served, operation: str, failure: Failure) -> None:
        """This operation was told to wait."""
        bucket = _bucket(served, failure)
        now = self._clock.monotonic()
        if len(self) >= self._most:
            self._forget(now)
        found = self._empty.setdefault(bucket.reach, {}).setdefault(bucket.name, Empty(now, set()))
        found.until = max(found.until, now + _seconds(failure))
        found.met_by.add(operation)

    def remaining(self, served: Served, operation: str) -> float:
        """Seconds before this may be called again; 0: now."""
        if not self._empty:
            return 0.0
        now = self._clock.monotonic()
        waits = [
            empty.until - now
            for reach in (_instance(served), _plugin(served))
            for name, empty in self._empty.get(reach, {}).items()
            if not name or operation in empty.met_by
        ]
        return max(0.0, *waits) if waits else 0.0

    def empty(self, served: Served) -> Iterator[tuple[ThrottleScope, float]]:
        """Buckets that this connection waits for, and for how many seconds still."""
        now = self._clock.monotonic()
        for reach, everybody in ((_instance(served), False), (_plugin(served), True)):
            kind = ThrottleScope.REACH_PLUGIN if everybody else ThrottleScope.REACH_INSTANCE
            for name, empty in self._empty.get(reach, {}).items():
                if empty.until > now:
                    yield ThrottleScope(reach=kind, bucket=name), empty.until - now

    def _forget(self, now: float) -> None:
        """Those that are full again; if that is not enough, those that will be first."""
        kept = sorted(
            (empty.until, reach, name)
            for reach, names in self._empty.items()
            for name, empty in names.items()
            if empty.until > now
        )[-(self._most // 2) :]
        stay = {(reach, name) for _, reach, name in kept}
        self._empty = {
            reach: left
            for reach, names in self._empty.items()
            if (left := {name: empty for name, empty in names.items() if (reach, name) in stay})
        }


def _bucket(served: Served, failure: Failure) -> Bucket:
    scope = failure.throttle_scope
    everybody = scope.reach == ThrottleScope.REACH_PLUGIN
    return Bucket(_plugin(served) if everybody else _instance(served), scope.bucket[:128])


def _instance(served: Served) -> str:
    return f"connection/{served.connection}"


def _plugin(served: Served) -> str:
    return f"plugin/{served.plugin}"


def _seconds(failure: Failure) -> float:
    if not failure.HasField("retry_after"):
        return DEFAULT_SECONDS
    return min(LONGEST_SECONDS, max(0.0, failure.retry_after.ToTimedelta().total_seconds()))
