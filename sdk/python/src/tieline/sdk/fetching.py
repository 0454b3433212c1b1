"""Polling, as a plugin sees it: a generator that yields what it finds.

    async def fetch(self, instance, poll):
        async for page in issues_since(poll.cursor):
            for issue in page.items:
                yield Record(issue.id, issue.raw, version=issue.updated)
            yield Checkpoint(page.cursor)

A checkpoint covers every record before it, so it comes after them. The SDK sends them on in frames, gives signs of
life, and ends the poll: when the generator is over there is nothing more for now; when enough was read it is
closed at a checkpoint. It must be able to go on from any checkpoint that it ever gave.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from tieline.sdk.core import Failure, Instance, ThrottleScope

LONGEST_SLEEP = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    """One raw item, as the provider gave it. Key and version make a repeat recognisable."""

    key: str
    payload: bytes
    version: str = ""
    content_type: str = ""
    ordering_key: str = ""
    occurred_at: datetime | None = None
    event_type: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """An item that could not be read; it becomes a dead letter, and the poll goes on."""

    key: str
    failure: Failure
    excerpt: bytes = b""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that was yielded before it is covered. At most 64 KiB, opaque to the platform."""

    cursor: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, for people, while there is nothing to send. Signs of life are the SDK's affair."""

    scanned: int = 0
    total: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Throttled:
    """The provider asks for patience: the poll ends here and goes on from its last checkpoint."""

    after: timedelta
    scope: ThrottleScope = field(default_factory=ThrottleScope)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """There is nothing more for now, and nothing before that much time. Without it the end of the generator says so."""

    next_poll_after: timedelta | None = None


Found = Record | Broken | Checkpoint | Progress | Throttled | CaughtUp


@dataclass(frozen=True, slots=True)
class Partition:
    """One part of a stream, polled by itself. Its id is stable and at most 512 bytes, its state at most 4 KiB."""

    id: str
    title: str = ""
    slot_entry: str = ""
    state: bytes = b""


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """A slot entry whose partitions could not be listed; those stay as they were."""

    slot_entry: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the past; the end no longer belongs."""

    start: datetime
    end: datetime


class PatienceOver(Exception):  # noqa: N818 - it is
    """Waiting would take longer than a poll may sleep. The SDK ends the poll with it."""

    def __init__(self, throttled: Throttled) -> None:
        super().__init__(f"not before {throttled.after}")
        self.throttled = throttled


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """What is asked for."""

    stream: str
    partition: Partition = field(default_factory=lambda: Partition(""))
    cursor: bytes = b""
    """Of the last checkpoint; empty: the beginning, which is `start_time` or the stream's default lookback."""
    start_time: datetime | None = None
    window: Window | None = None
    """A backfill: this stretch of the past, with checkpoints of its own."""

    async def wait(self, seconds: float, scope: ThrottleScope | None = None) -> None:
        """Be patient with the provider. More than a few seconds end the poll; the platform waits better."""
        if seconds > LONGEST_SLEEP:
            raise PatienceOver(Throttled(timedelta(seconds=seconds), scope or ThrottleScope()))
        await asyncio.sleep(max(seconds, 0.0))


@runtime_checkable
class Fetches(Protocol):
    """Polls. A generator may be plain as well: it runs in a thread then."""

    def fetch(self, instance: Instance, poll: Poll, /) -> AsyncIterator[Found] | Iterator[Found]: ...


@runtime_checkable
class ListsPartitions(Protocol):
    """Tells the parts of a stream, all of them, in any order."""

    def partitions(
        self, instance: Instance, stream: str, /
    ) -> AsyncIterable[Partition | BrokenEntry] | Iterable[Partition | BrokenEntry]: ...
