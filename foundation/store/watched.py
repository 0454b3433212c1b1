"""Something in the database that is held in memory whole, and told to whoever wants to hear of its changes.

A number beside it grows with every change, in the transaction of the change. A change that this process makes is
told at once (`notice`); one of another replica is noticed by a look at that number, now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import structlog

from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.store.errors import StoreError

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    generation: int
    content: T

    @property
    def known(self) -> bool:
        """Whether the database has answered once."""
        return self.generation >= 0


Read = Callable[[int], Awaitable[Snapshot[T] | None]]
"""Reads all of it, unless its generation is still the one given. The number comes first: what changes in between
is then read now, and again with the next number."""


class Watched(Generic[T]):
    """`async with` it. Nothing is known before the database has answered once; then it is never forgotten."""

    def __init__(self, what: str, read: Read[T], nothing: T, *, look_seconds: float) -> None:
        self._what = what
        self._read = read
        self._look_seconds = look_seconds
        self._looking = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._turned = asyncio.Event()
        self._open = True
        self._task: asyncio.Task[None] | None = None
        self.snapshot = Snapshot(-1, nothing)

    def notice(self) -> None:
        """Something was changed here."""
        self._wanted.set()

    async def look(self) -> None:
        """See what there is now; what was seen before stays while the database is away."""
        async with self._looking:
            with suppress(Problem, StoreError):
                if (found := await self._read(self.snapshot.generation)) is not None:
                    self.snapshot = found
                    turned, self._turned = self._turned, asyncio.Event()
                    turned.set()

    async def watch(self) -> AsyncIterator[Snapshot[T]]:
        """What there is now, and again after each change, until `stop_watching`."""
        seen = -1
        while self._open:
            turned = self._turned
            if self.snapshot.generation > seen:
                seen = self.snapshot.generation
                yield self.snapshot
            else:
                await turned.wait()

    def stop_watching(self) -> None:
        """Watchers wait for changes for ever; without this word a server's drain would wait for them."""
        self._open = False
        self._turned.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name=f"watch {self._what}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_watching()
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a task's border: what is known may be late, never gone
                log.exception("what is watched could not be read", what=self._what)
            await woken(self._wanted, self._look_seconds)
