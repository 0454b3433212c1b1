"""Settings with which a plugin's process ends when it is given them: found out as inputs are, and refused.

When a process dies during Initialize, every instance that was being given to it is suspected, and given to the next
life alone. The one that ends it alone, twice, is refused as settings that cannot work, so that one connection
does not take all others along for ever. Its crashes count: a plugin that takes no settings at all is broken.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.process.supervised import Report
from services.registry.broker import failures
from services.registry.broker.serving import Served
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure

DEATHS = 2
MOST = 10_000
FORGET_SECONDS = 3600.0

Key = tuple[str, str, str, int]


@dataclass(slots=True)
class Record:
    since: float
    deaths: int = 0
    verdict: Failure | None = None


class Deadly:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: OrderedDict[Key, Record] = OrderedDict()

    def suspects(self, process: PluginProcess, served: Served) -> bool:
        """Whether it must be alone with the process when it is given to it."""
        known = self._find(process, served)
        return known is not None and known.verdict is None

    def verdict(self, process: PluginProcess, served: Served) -> Failure | None:
        known = self._find(process, served)
        return known.verdict if known is not None else None

    def died(self, process: PluginProcess, served: Served, report: Report, *, alone: bool) -> None:
        """The process ended while it was being given this instance."""
        record = self._known.setdefault(_key(process, served), Record(self._clock.monotonic()))
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        if alone:
            record.deaths += 1
        if record.deaths >= DEATHS:
            why = f"given these settings, the plugin ended, {DEATHS} times: {report.sentence}"
            record.verdict = failures.invalid_config("DEADLY_SETTINGS", why)

    def taken(self, process: PluginProcess, served: Served) -> None:
        """It lives on with them."""
        if self._known:
            self._known.pop(_key(process, served), None)

    def _find(self, process: PluginProcess, served: Served) -> Record | None:
        if not self._known:
            return None
        before = self._clock.monotonic() - FORGET_SECONDS
        while self._known and next(iter(self._known.values())).since < before:
            self._known.popitem(last=False)
        return self._known.get(_key(process, served))


def _key(process: PluginProcess, served: Served) -> Key:
    return process.name, process.manifest.version, served.instance, served.revision
