"""The secrets that endpoints are verified with: borrowed from the vault, held in memory, given to nobody.

A lease is renewed at half its life and used to its end, so a gateway that runs survives an outage of the
vault; one that has no secret yet cannot verify and says 503, so that the provider sends again. In between the
vault tells what has changed: a secret that was revoked is wiped at once, a newer one is fetched at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from grpc.aio import Channel

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.rpc import follow
from gateway.verification import Secret
from tieline.common.v1.failure_pb2 import FAILURE_KIND_TRANSIENT
from tieline.credentials.v1 import leases_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import PURPOSE_WEBHOOK_VERIFY
from tieline.credentials.v1.leases_pb2 import (
    AcquireLeasesRequest,
    Lease,
    LeasedSecret,
    WatchLeasesRequest,
    WatchLeasesResponse,
)
from tieline.registry.v1.endpoints_pb2 import Endpoint

REFUSAL_SECONDS = 5.0
"""How long a refusal of the vault is believed: a grant may come any moment, a flood must not ask each time."""


@dataclass(frozen=True, slots=True)
class Held:
    lease: str
    """By name; empty where the vault refuses."""
    secrets: Sequence[Secret]
    renew_at: float
    ends_at: float


Subject = tuple[str, str]
"""Connection or app, and slot."""


class Keyring:
    """`async with` it."""

    def __init__(self, credentials: Channel, clock: Clock) -> None:
        self._stub = leases_pb2_grpc.LeaseServiceStub(credentials)
        self._clock = clock
        self._held: dict[Subject, Held] = {}
        self._asking: dict[Subject, asyncio.Task[Held]] = {}
        self._overtaken: set[Subject] = set()
        """Asked for when a change was told: the answer may be from before it."""
        self._listening: asyncio.Task[None] | None = None

    async def secrets(self, endpoint: Endpoint) -> Sequence[Secret]:
        """Every active version, newest first; none where the vault refuses."""
        subject = (endpoint.connection or endpoint.app, endpoint.webhook.slot or "webhook")
        held, now = self._held.get(subject), self._clock.monotonic()
        if held is not None and now < held.renew_at:
            return held.secrets
        asking = self._ask(subject)
        if held is not None and now < held.ends_at:
            return held.secrets
        # Many may wait for one question; whoever leaves does not take it from the others.
        return (await asyncio.shield(asking)).secrets

    async def __aenter__(self) -> Self:
        watch = partial(self._stub.WatchLeases, WatchLeasesRequest())
        listening = follow("changed leases", watch, self._hear)
        self._listening = asyncio.create_task(listening, name="hear of changed leases")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._listening)
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        self._held.clear()

    def _ask(self, subject: Subject) -> asyncio.Task[Held]:
        if subject not in self._asking:
            task = asyncio.create_task(self._acquire(subject), name=f"lease for {subject[0]}")
            self._asking[subject] = task
            task.add_done_callback(lambda done: self._answered(subject, done))
        return self._asking[subject]

    def _answered(self, subject: Subject, task: asyncio.Task[Held]) -> None:
        del self._asking[subject]
        overtaken = subject in self._overtaken
        self._overtaken.discard(subject)
        if task.cancelled() or task.exception() is not None:
            return
        self._held[subject] = task.result()
        if overtaken:
            self._renew(subject)

    async def _acquire(self, subject: Subject) -> Held:
        request = AcquireLeasesRequest.LeaseRequest(
            subject=subject[0], slot=subject[1], purpose=PURPOSE_WEBHOOK_VERIFY
        )
        answer = await self._stub.AcquireLeases(AcquireLeasesRequest(requests=[request]), timeout=5.0)
        now = self._clock.monotonic()
        outcome = answer.outcomes[0]
        if outcome.WhichOneof("outcome") == "secret":
            life = self._life(outcome.secret)
            name = outcome.secret.lease.name
            return Held(name, _versions(outcome.secret), now + life / 2, now + life)
        if outcome.failure.kind == FAILURE_KIND_TRANSIENT:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why=outcome.failure.message)
        return Held("", (), now + REFUSAL_SECONDS, now + REFUSAL_SECONDS)

    def _life(self, secret: LeasedSecret) -> float:
        ends = secret.lease.expire_time.ToDatetime(tzinfo=self._clock.now().tzinfo)
        return max(0.0, (ends - self._clock.now()).total_seconds())

    def _hear(self, told: WatchLeasesResponse) -> None:
        """What is not told as active is asked for again: it is replaced, given back, or newer than the telling.

        Meanwhile, and as long as the vault is away, it is used; but what is revoked is not used any more.
        """
        self._overtaken.update(self._asking)
        states = {lease.name: lease.state for lease in told.leases}
        for subject, held in list(self._held.items()):
            state = states.get(held.lease)
            if not held.lease or state == Lease.STATE_ACTIVE:
                continue
            if state in (Lease.STATE_REVOKED, Lease.STATE_UNSPECIFIED):
                del self._held[subject]
            else:
                self._renew(subject)

    def _renew(self, subject: Subject) -> None:
        self._held[subject] = replace(self._held[subject], renew_at=self._clock.monotonic())
        self._ask(subject)


def _versions(secret: LeasedSecret) -> Sequence[Secret]:
    numbers = [secret.lease.version.version, *secret.previous_versions]
    values = [secret.fields["secret"], *secret.previous_secrets]
    return tuple(Secret(number, value) for number, value in zip(numbers, values, strict=True))
