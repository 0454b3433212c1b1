"""Secrets borrowed from the vault, held in memory by whoever uses them.

A lease is renewed at half its life and used to its end, so a process that runs survives an outage of the vault.
In between the vault tells what has changed: what was revoked is dropped at once, what is newer is fetched at once.
Nothing is held longer than its lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, Self

from grpc.aio import Channel

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.rpc import follow
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT, Failure
from tieline.credentials.v1 import leases_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import Purpose
from tieline.credentials.v1.leases_pb2 import (
    AcquireLeasesRequest,
    AcquireLeasesResponse,
    Lease,
    LeasedSecret,
    WatchLeasesRequest,
    WatchLeasesResponse,
)

ASK_SECONDS = 5.0
REFUSAL_SECONDS = 5.0
"""How long a refusal of the vault is believed: a grant may come any moment, a flood must not ask each time."""
AT_ONCE = 500
"""Requests in one question, by the contract."""
IDLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a secret is for: one entry of a slot of a connection or app."""

    subject: str
    slot: str
    entry: str = ""
    purpose: Purpose.ValueType
    plugin: str = ""
    plugin_version: str = ""
    credential: str = ""
    """Which one is meant; empty: that of the newest grant."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the vault answered for a place: a secret, or why there is none."""

    renew_at: float
    ends_at: float
    secret: LeasedSecret = field(default_factory=LeasedSecret, repr=False)
    failure: Failure | None = None

    @property
    def lease(self) -> str:
        return self.secret.lease.name

    @property
    def given(self) -> bool:
        return self.failure is None


class Listener(Protocol):
    """Who hands on what is held."""

    def renewed(self, place: Place, held: Held) -> None:
        """There is another secret than before."""

    def lost(self, place: Place, held: Held) -> None:
        """This one must not be used any more: revoked, refused, or over."""


class Deaf:
    """Hands on nothing."""

    def renewed(self, place: Place, held: Held) -> None: ...

    def lost(self, place: Place, held: Held) -> None: ...


Outcome = AcquireLeasesResponse.LeaseOutcome
Answers = dict[Place, Held]


class Borrowed:
    """`async with` it."""

    def __init__(self, credentials: Channel, clock: Clock, listener: Listener | None = None) -> None:
        self._stub = leases_pb2_grpc.LeaseServiceStub(credentials)
        self._clock = clock
        self._listener: Listener = Deaf() if listener is None else listener
        self._held: Answers = {}
        self._asking: dict[Place, asyncio.Task[Answers]] = {}
        self._overtaken: set[Place] = set()
        """Asked for when a change was told: the answer may be from before it."""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def get(self, places: Sequence[Place]) -> list[Held]:
        """One answer for each; what is not held is asked for in one question.

        A `Problem` where the vault is away and something of it is not held.
        """
        now = self._clock.monotonic()
        self._ask([place for place in places if not self._is_fresh(place, now)])
        waits = {place: self._asking[place] for place in places if not self._is_usable(place, now)}
        answers: Answers = {}
        # Many may wait for one question; whoever leaves does not take it from the others.
        for task in set(waits.values()):
            answers |= await asyncio.shield(task)
        now = self._clock.monotonic()
        answers |= {place: self._held[place] for place in {*places} - {*waits} if self._is_usable(place, now)}
        if lost := [place for place in places if place not in answers]:
            answers |= zip(lost, await self.get(lost), strict=True)
        return [answers[place] for place in places]

    def held(self) -> list[Held]:
        """Everything there is."""
        return [held for held in self._held.values() if held.given]

    def renew(self, place: Place) -> None:
        """Ask again, whatever is held; that is used until the answer comes."""
        if place in self._held:
            self._held[place] = replace(self._held[place], renew_at=self._clock.monotonic())
        self._ask([place])

    def refused(self, place: Place, version: int) -> None:
        """Its user was refused with this version: whoever asks next waits for what the vault has now."""
        held = self._held.get(place)
        if held is not None and held.secret.lease.version.version == version:
            now = self._clock.monotonic()
            self._held[place] = replace(held, renew_at=now, ends_at=now)
        if place in self._asking:
            self._overtaken.add(place)

    def drop(self, place: Place) -> None:
        """Not to be used any more."""
        held = self._held.pop(place, None)
        if held is not None and held.given:
            self._listener.lost(place, held)

    async def __aenter__(self) -> Self:
        watch = partial(self._stub.WatchLeases, WatchLeasesRequest())
        self._tasks = [
            asyncio.create_task(follow("changed leases", watch, self._hear), name="hear of changed leases"),
            asyncio.create_task(self._sweep(), name="drop leases that are over"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await end(task)
        asking = set(self._asking.values())
        for question in asking:
            question.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._held.clear()

    def _is_fresh(self, place: Place, now: float) -> bool:
        held = self._held.get(place)
        return held is not None and now < held.renew_at

    def _is_usable(self, place: Place, now: float) -> bool:
        held = self._held.get(place)
        return held is not None and now < held.ends_at

    def _ask(self, places: Sequence[Place]) -> None:
        new = list(dict.fromkeys(place for place in places if place not in self._asking))
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            task = asyncio.create_task(self._acquire(some), name=f"lease for {some[0].subject}")
            self._asking.update(dict.fromkeys(some, task))
            task.add_done_callback(partial(self._answered, some))

    def _answered(self, places: Sequence[Place], task: asyncio.Task[Answers]) -> None:
        overtaken = [place for place in places if place in self._overtaken]
        for place in places:
            del self._asking[place]
        self._overtaken.difference_update(places)
        if task.cancelled() or task.exception() is not None:
            return
        for place, answer in task.result().items():
            self._keep(place, answer)
        for place in overtaken:
            self.renew(place)

    def _keep(self, place: Place, answer: Held) -> None:
        before = self._held.get(place)
        if answer.failure is not None and answer.failure.kind == FAILURE_KIND_TRANSIENT:
            return  # what is held serves meanwhile
        self._held[place] = answer
        self._changed.set()
        if before is None or not before.given:
            return
        if not answer.given:
            self._listener.lost(place, before)
        elif _identity(answer) != _identity(before):
            self._listener.renewed(place, answer)

    async def _acquire(self, places: Sequence[Place]) -> Answers:
        request = AcquireLeasesRequest(requests=map(_request, places))
        answer = await self._stub.AcquireLeases(request, timeout=ASK_SECONDS)
        return {place: self._read(outcome) for place, outcome in zip(places, answer.outcomes, strict=True)}

    def _read(self, outcome: Outcome) -> Held:
        now = self._clock.monotonic()
        if outcome.WhichOneof("outcome") == "secret":
            ends = outcome.secret.lease.expire_time.ToDatetime(tzinfo=self._clock.now().tzinfo)
            life = max(0.0, (ends - self._clock.now()).total_seconds())
            return Held(now + life / 2, now + life, outcome.secret)
        return Held(now + REFUSAL_SECONDS, now + REFUSAL_SECONDS, failure=outcome.failure)

    def _hear(self, told: WatchLeasesResponse) -> None:
        """What is not told as active is asked for again: it is replaced, given back, or newer than the telling.

        Meanwhile, and as long as the vault is away, it is used; but what is revoked is not used any more.
        """
        self._overtaken.update(self._asking)
        states = {lease.name: lease.state for lease in told.leases}
        for place, held in list(self._held.items()):
            state = states.get(held.lease)
            if not held.given or state == Lease.STATE_ACTIVE:
                continue
            if state in (Lease.STATE_REVOKED, Lease.STATE_UNSPECIFIED):
                self.drop(place)
            else:
                self.renew(place)

    async def _sweep(self) -> None:
        while True:
            now = self._clock.monotonic()
            for place in [place for place, held in self._held.items() if held.ends_at <= now]:
                self.drop(place)
            next_end = min((held.ends_at for held in self._held.values()), default=now + IDLE_SECONDS)
            await woken(self._changed, min(IDLE_SECONDS, max(0.0, next_end - now)))


def _request(place: Place) -> AcquireLeasesRequest.LeaseRequest:
    return AcquireLeasesRequest.LeaseRequest(
        subject=place.subject,
        slot=place.slot,
        entry=place.entry,
        purpose=place.purpose,
        plugin=place.plugin,
        plugin_version=place.plugin_version,
        credential=place.credential,
    )


def _identity(held: Held) -> tuple[str, int]:
    """A grant may be made for another credential, whose versions are counted from the beginning."""
    return held.secret.lease.name.partition("/leases/")[0], held.secret.lease.version.version
