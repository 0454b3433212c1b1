"""Long calls, and how they give way to whoever has to be alone with a process.

A poll may run for minutes and is resumed from its last checkpoint, so it is what gives way: otherwise a suspect
would never be heard where there is always somebody polling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

from foundation.rpc.streams import Answers
from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure

T = TypeVar("T")

AGAIN_SECONDS = 1.0


class Streams:
    """Of one process."""

    def __init__(self) -> None:
        self._running: dict[Answers[object], bool] = {}
        """Whether each was cut off by us."""
        self._alone = 0

    async def frames(self, call: Answers[T]) -> AsyncGenerator[T, None]:
        """What the stream tells; CallFailed where it had to give way."""
        self.demand_leave()  # somebody may have come while the call was being prepared
        self._running[call] = False
        try:
            async for frame in call:
                yield frame
        except asyncio.CancelledError:
            # The call's own cancellation looks like that of whoever reads it.
            if not self._running[call] or _is_cancelled():
                raise
            raise CallFailed(_gave_way(), ours=True) from None
        finally:
            del self._running[call]

    def demand_leave(self) -> None:
        """Nobody begins while somebody waits to be alone."""
        if self._alone:
            raise CallFailed(failures.untouched(_gave_way()), ours=True)

    @contextmanager
    def out_of_the_way(self) -> Iterator[None]:
        self._alone += 1
        for call in self._running:
            self._running[call] = True
            call.cancel()
        try:
            yield
        finally:
            self._alone -= 1


class AllStreams:
    def __init__(self) -> None:
        self._of: WeakKeyDictionary[PluginProcess, Streams] = WeakKeyDictionary()

    def of(self, process: PluginProcess) -> Streams:
        found = self._of.get(process)
        if found is None:
            found = self._of[process] = Streams()
        return found


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _gave_way() -> Failure:
    why = "it gave way to another call, which has to be alone with the plugin; go on from the last checkpoint"
    return failures.later(failures.transient("GAVE_WAY", why), AGAIN_SECONDS)
