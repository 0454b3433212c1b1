"""Sharing work among mappers: each holds its part for a few seconds, again and again, while it lives.

A lease saves work, it does not guard correctness: the state of a delivery does that, under a row lock. So a
mapper that lost its leases without noticing does something in vain, and nothing twice.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self
from uuid import UUID

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Problem
from foundation.store.errors import StoreError
from services.mapper.store.leases import LeaseStore

log = structlog.get_logger(__name__)

LIFE = 4.0
"""Seconds after which the work of a mapper that was killed goes to others."""
PERIOD = 1.0


class Leases:
    """`async with` it: takes a fair part of `shares` shares of one kind of work, and gives them back at the end."""

    def __init__(
        self, store: LeaseStore, kind: str, shares: int, owner: UUID, clock: Clock, *, life: float = LIFE
    ) -> None:
        self._store = store
        self._kind = kind
        self._shares = shares
        self._owner = owner
        self._clock = clock
        self._life = life
        self._held: frozenset[int] = frozenset()
        self._valid_until = 0.0
        self._task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()

    @property
    def held(self) -> frozenset[int]:
        """What is ours at this moment: by our own clock, from before the database was asked."""
        return self._held if self._clock.monotonic() < self._valid_until else frozenset()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name=f"keep leases on {self._kind}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        self._held = frozenset()
        # Without a database nobody can be told, and the leases expire by themselves.
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(self._life):
                await self._store.give_back(self._kind, self._owner, range(self._shares))
                await self._store.leave(self._owner)

    async def _keep(self) -> None:
        laid_out = False
        while True:
            try:
                if not laid_out:
                    await self._store.lay_out(self._kind, self._shares, self._owner)
                    laid_out = True
                await self.turn()
            except Problem as error:
                log.debug("leases not renewed", kind=self._kind, error=str(error))
            except Exception:  # a task's border: without this task the mapper would do nothing, silently
                log.exception("leases not renewed", kind=self._kind)
            await self._clock.sleep(self._life / LIFE * PERIOD)

    async def turn(self) -> None:
        """Renew what we hold, give back what is above our part, take what nobody holds up to it."""
        asked = self._clock.monotonic()
        members = await self._store.attend(self._owner, self._life)
        held = await self._store.renew(self._kind, self._owner, self._life)
        part = -(-self._shares // max(1, members))
        if len(held) > part:
            surplus = sorted(held)[part:]
            held -= set(surplus)
            self._set(held, asked)
            await self._store.give_back(self._kind, self._owner, surplus)
        elif len(held) < part:
            held |= await self._store.take(self._kind, self._owner, self._life, part - len(held))
        self._set(held, asked)

    def _set(self, held: set[int], asked: float) -> None:
        is_new = not held <= self.held
        self._held, self._valid_until = frozenset(held), asked + self._life
        if is_new:
            self.changed.set()
