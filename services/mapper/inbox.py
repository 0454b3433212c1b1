"""The one door to the store: what is let in, and how a repeat is recognised."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeAlias
from uuid import UUID

from foundation.errors import Problem
from foundation.identity.names import parse
from foundation.store.errors import TransactionConflict
from services.mapper.names import partition_of
from tieline.common.v1.delivery_pb2 import PRIORITY_LIVE, PRIORITY_UNSPECIFIED
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, FAILURE_KIND_NOT_FOUND, Failure
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.mapper.v1.events_pb2 import Delivery as DeliveryMessage
from tieline.mapper.v1.inbox_pb2 import AcceptOutcome, DeliveryInput

_ATTEMPTS = 3
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

# PostgreSQL keeps these in an index, whose entries are small, and none of its texts may hold a NUL.
_LIMITS = {
    "connection": 256,
    "webhook": 64,
    "provider_delivery_id": 512,
    "event_type": 256,
    "content_type": 1024,
    "query": 16 * 1024,
    "account_key": 512,
}
_REQUIRED = ("connection", "webhook", "provider_delivery_id")


RepeatKey: TypeAlias = tuple[str, str, str]
"""Connection, channel and the provider's id."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A delivery that may be stored."""

    tenant: str
    id: UUID
    partition: int
    received_at: datetime
    message: DeliveryInput
    record: DeliveryMessage.Record | None = None
    """Of a stream; its place in the stream is in the key, as a digest."""
    failure: Failure | None = None
    """It could not be read or routed, so it is a dead letter from the beginning."""
    stage: DeadLetter.Stage.ValueType = DeadLetter.STAGE_FETCH
    """Where it died, if it did."""

    @property
    def repeat_key(self) -> RepeatKey:
        return self.message.connection, self.message.webhook, self.message.provider_delivery_id

    @property
    def priority(self) -> int:
        given = self.message.priority
        return PRIORITY_LIVE if given == PRIORITY_UNSPECIFIED else given

    @property
    def headers(self) -> bytes:
        return DeliveryMessage(headers=self.message.headers, record=self.record).SerializeToString()

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.message.body).digest()

    @property
    def traceparent(self) -> str:
        given = self.message.traceparent
        return given if _TRACEPARENT.fullmatch(given) else ""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store holds under a repeat key."""

    delivery: UUID
    is_new: bool


@dataclass(frozen=True, slots=True)
class Fence:
    """Who polls a part of a stream: whoever has taken over has the higher number."""

    tenant: str
    connection: str
    stream: str
    partition: str
    number: int


class Fenced(Exception):  # noqa: N818 - a state, not a fault
    """Another poller has taken over."""


class Deliveries(Protocol):
    async def keep(self, arrivals: Sequence[Arrival], fence: Fence | None = None) -> Mapping[RepeatKey, Kept]:
        """Store what is new, and say of each key what is there; nothing is there where its id was taken.

        `Fenced` if a higher number than the fence's was seen; nothing is stored then.
        """


class Inbox:
    def __init__(self, store: Deliveries) -> None:
        self._store = store

    async def accept(self, inputs: Sequence[DeliveryInput]) -> list[AcceptOutcome]:
        """One outcome for each, in its order. Returns after the commit has reached the disk, never before."""
        outcomes = [AcceptOutcome()] * len(inputs)
        arrivals: dict[int, Arrival] = {}
        firsts: dict[RepeatKey, Arrival] = {}
        for index, message in enumerate(inputs):
            try:
                arrivals[index] = arrival = _arrival(message)
            except (ValueError, Problem) as refusal:
                outcomes[index] = _refused(message, "DELIVERY_UNUSABLE", str(refusal))
            else:
                firsts.setdefault(arrival.repeat_key, arrival)
        await self._settle(outcomes, arrivals, firsts)
        return outcomes

    async def accept_arrivals(self, arrivals: Sequence[Arrival], fence: Fence) -> list[AcceptOutcome]:
        """The same for what was found usable already."""
        outcomes = [AcceptOutcome()] * len(arrivals)
        firsts: dict[RepeatKey, Arrival] = {}
        for arrival in arrivals:
            firsts.setdefault(arrival.repeat_key, arrival)
        await self._settle(outcomes, dict(enumerate(arrivals)), firsts, fence)
        return outcomes

    async def _settle(
        self,
        outcomes: list[AcceptOutcome],
        arrivals: Mapping[int, Arrival],
        firsts: Mapping[RepeatKey, Arrival],
        fence: Fence | None = None,
    ) -> None:
        # An id may stand in one row only, so what takes a second key with it is not even tried.
        by_id: dict[tuple[str, UUID], Arrival] = {}
        for arrival in firsts.values():
            by_id.setdefault((arrival.tenant, arrival.id), arrival)
        kept = await self._keep(list(by_id.values()), fence) if by_id or fence else {}
        for index, arrival in arrivals.items():
            is_first = firsts[arrival.repeat_key] is arrival
            outcomes[index] = _outcome(arrival, kept.get(arrival.repeat_key), is_first=is_first)

    async def _keep(self, arrivals: list[Arrival], fence: Fence | None) -> Mapping[RepeatKey, Kept]:
        for _ in range(_ATTEMPTS - 1):
            # Two calls that carry the same deliveries in another order may deadlock; one of them is told.
            try:
                return await self._store.keep(arrivals, fence)
            except TransactionConflict:
                continue
        return await self._store.keep(arrivals, fence)


def _outcome(arrival: Arrival, kept: Kept | None, *, is_first: bool) -> AcceptOutcome:
    if kept is None:
        return _refused(arrival.message, "DELIVERY_ID_TAKEN", "another delivery has this id")
    is_new = kept.is_new and is_first
    result = AcceptOutcome.RESULT_ACCEPTED if is_new else AcceptOutcome.RESULT_DUPLICATE
    return AcceptOutcome(result=result, delivery_id=str(kept.delivery))


def _refused(message: DeliveryInput, reason: str, why: str) -> AcceptOutcome:
    failure = Failure(kind=FAILURE_KIND_INVALID_INPUT, reason=reason, message=why)
    return AcceptOutcome(
        result=AcceptOutcome.RESULT_REFUSED, delivery_id=message.delivery_id, failure=failure
    )


def _arrival(message: DeliveryInput) -> Arrival:
    """The delivery as it may be stored; ValueError or Problem says why it may not."""
    tenant, failure = _receiver(message)
    for field, limit in _LIMITS.items():
        value: str = getattr(message, field)
        if "\0" in value or len(value.encode()) > limit:
            raise ValueError(f"`{field}` holds a NUL or more than {limit} bytes")
        if field in _REQUIRED and not value:
            raise ValueError(f"`{field}` is empty")
    if not message.HasField("received_at"):
        raise ValueError("`received_at` is missing")
    try:
        received_at = message.received_at.ToDatetime(UTC)
        identity = UUID(message.delivery_id)
    except (ValueError, OverflowError):
        raise ValueError("`delivery_id` is no UUID, or `received_at` is no time") from None
    return Arrival(
        tenant,
        identity,
        partition_of(message.connection),
        received_at,
        message,
        failure=failure,
        stage=DeadLetter.STAGE_ROUTE,
    )


def _receiver(message: DeliveryInput) -> tuple[str, Failure | None]:
    """The tenant that gets it: a connection's, or for what an app could not route its owner, with the reason."""
    if not message.connection.startswith("apps/"):
        tenant, _ = parse("tenants/*/connections/*", message.connection, "connection")
        return tenant, None
    parse("apps/*", message.connection, "connection")
    (owner,) = parse("tenants/*", message.app_owner, "app_owner")
    account = (
        f"the account {message.account_key[:200]}" if message.account_key else "an account; it names none"
    )
    why = f"no connection of {message.connection} receives for {account}"
    return owner, Failure(kind=FAILURE_KIND_NOT_FOUND, reason="ACCOUNT_UNKNOWN", message=why)
