"""Inputs that were in flight when a plugin's process died or hung: remembered until each was asked alone.

They are known by what they are, not by how they are called: TransformData is pure, so an input that is sent
again, in whatever batch, is the same suspect. What is remembered is bounded, and forgotten after a while.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from foundation.clock import Clock
from services.registry.broker.serving import Served
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.transform_pb2 import TransformInput

MOST = 10_000
FORGET_SECONDS = 3600.0
"""After this long an input is asked anew: what ailed the plugin may have been its machine."""


@dataclass(slots=True)
class Suspicion:
    since: float
    deaths: int = 0
    """How often the process died with this input alone."""
    stalls: int = 0
    """How often it did not answer in time, asked alone."""
    verdict: Failure | None = field(default=None, repr=False)
    """It is guilty, and this is the answer to it from now on."""


class Suspects:
    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._known: OrderedDict[bytes, Suspicion] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, process: PluginProcess, served: Served, item: TransformInput) -> Suspicion | None:
        """What is held against it, if anything is."""
        if not self._known:
            return None  # nothing is looked at closely on ordinary days
        self._forget_old()
        return self._known.get(fingerprint(process, served, item))

    def accuse(self, process: PluginProcess, served: Served, item: TransformInput) -> Suspicion:
        """It was there when it happened."""
        self._forget_old()
        known = self._known.setdefault(fingerprint(process, served, item), Suspicion(self._clock.monotonic()))
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return known

    def acquit(self, process: PluginProcess, served: Served, item: TransformInput) -> None:
        """It was asked alone, and answered."""
        self._known.pop(fingerprint(process, served, item), None)

    def _forget_old(self) -> None:
        before = self._clock.monotonic() - FORGET_SECONDS
        while self._known and next(iter(self._known.values())).since < before:
            self._known.popitem(last=False)


def fingerprint(process: PluginProcess, served: Served, item: TransformInput) -> bytes:
    """Everything that the answer may depend on; another version or other settings are another chance."""
    bare = TransformInput()
    bare.CopyFrom(item)
    bare.ClearField("input_id")
    bare.ClearField("received_at")
    told = f"{process.name}\n{process.manifest.version}\n{served.instance}\n{served.revision}\n".encode()
    return hashlib.sha256(told + bare.SerializeToString(deterministic=True)).digest()
