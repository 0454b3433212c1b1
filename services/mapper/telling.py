"""One Subscribe stream: what it may say when, so that no event is told past and none without limit."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from foundation.clock import Clock
from foundation.errors import Code, Problem
from services.mapper.feed import Feed, Start, Told
from services.mapper.filters import fits
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1.subscriptions_pb2 import EventFilter, SubscribeResponse

HEARTBEAT_SECONDS = 15.0
LOOK_SECONDS = 0.1
"""How soon an acknowledgement, which may have come to another mapper, lets a full stream go on."""

Cursor = Callable[[], Awaitable[int]]
"""The number up to which everything has been dealt with."""


class Window:
    """At most so many events told without being acknowledged."""

    def __init__(self, most: int, cursor: Cursor) -> None:
        self._most = most
        self._cursor = cursor
        self._told: deque[int] = deque()

    @property
    def is_full(self) -> bool:
        return len(self._told) >= self._most

    def add(self, number: int) -> None:
        self._told.append(number)

    async def look(self) -> None:
        acknowledged = await self._cursor()
        while self._told and self._told[0] <= acknowledged:
            self._told.popleft()


class Unbounded(Window):
    """Without a subscription nothing is acknowledged, so nothing waits for it."""

    def __init__(self) -> None:
        super().__init__(0, _nowhere)

    @property
    def is_full(self) -> bool:
        return False

    def add(self, number: int) -> None:
        """Nobody will ask."""


async def _nowhere() -> int:
    return 0


class Teller:
    def __init__(self, feed: Feed, wanted: EventFilter, window: Window, clock: Clock) -> None:
        self._feed = feed
        self._wanted = wanted
        self._window = window
        self._clock = clock
        self._spoke_at = clock.monotonic()
        self._seen = 0

    async def tell(self, tenant: str, start: Start) -> AsyncGenerator[SubscribeResponse]:
        """Every response carries the token of all that came before it, told or not wanted."""
        self._seen = start.after
        async with aclosing(self._feed.follow(tenant, start)) as batches:
            async for batch in batches:
                async for response in self._batch(batch):
                    self._spoke_at = self._clock.monotonic()
                    yield response

    async def _batch(self, batch: list[Told]) -> AsyncGenerator[SubscribeResponse]:
        events: list[Event] = []
        for told in batch:
            event = Event.FromString(told.content)
            if fits(self._wanted, event):
                if self._window.is_full:
                    await self._window.look()
                if self._window.is_full:
                    if events:
                        yield self._response(events)
                        events = []
                    async for sign in self._wait():
                        yield sign
                self._window.add(told.number)
                events.append(event)
            self._seen = told.number
        if events or self._is_silent():
            yield self._response(events)

    async def _wait(self) -> AsyncGenerator[SubscribeResponse]:
        while self._window.is_full:
            await self._clock.sleep(LOOK_SECONDS)
            await self._window.look()
            if self._is_silent():
                yield self._response([])

    def _is_silent(self) -> bool:
        return self._clock.monotonic() - self._spoke_at >= HEARTBEAT_SECONDS

    def _response(self, events: list[Event]) -> SubscribeResponse:
        return SubscribeResponse(events=events, ack_token=token(self._seen))


def token(number: int) -> str:
    return base64.urlsafe_b64encode(f"1:{number}".encode()).decode()


def number_of(ack_token: str) -> int:
    try:
        version, _, number = base64.urlsafe_b64decode(ack_token.encode()).decode().partition(":")
        if version == "1" and 0 <= int(number) < 2**63:
            return int(number)
    except (ValueError, binascii.Error):
        pass
    raise Problem(Code.INVALID_ARGUMENT, field="ack_token", why="it was not given by Subscribe")
