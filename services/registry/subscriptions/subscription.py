"""A webhook subscription at a provider, and how it goes on. Pure: no clock, no database, nobody is asked.

Each step is a durable operation under a key that is derived from the number of the step. The number is stored before
the operation is submitted, so whoever does the step again, after a crash or beside another replica, gets the
same operation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from services.registry.operations.operation import Progress, State
from tieline.common.v1.failure_pb2 import Failure, FailureKind

RETRY = timedelta(minutes=1)
LONGEST = timedelta(hours=6)
LOOK = timedelta(seconds=15)
"""How often one that needs a person is looked at."""
EARLY = 2 / 3
"""Of its life, when it is renewed."""
ID_BYTES = 512


class Step(StrEnum):
    CREATE = "create"
    RENEW = "renew"
    REMOVE = "remove"
    IDLE = "idle"
    GONE = "gone"
    """There is none. The row stays, because its number must not come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A connection wants this webhook, and has what it takes to see to it."""

    url: str
    create: str
    renew: str = ""
    remove: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    tenant: str
    connection: str
    """Its id."""
    webhook: str
    instance: str
    """Another for each connection that ever had this id."""
    number: int = 1
    step: Step = Step.CREATE
    operation: str | None = None
    """The id of the one under way."""
    url: str
    subscription_id: str = ""
    expire_time: datetime | None = None
    renew_time: datetime | None = None
    due: datetime
    failures: int = 0
    failure: Failure | None = None

    @property
    def key(self) -> str:
        """Of its present step. Long names are told apart by the instance and the number."""
        return f"subscription/{self.instance}/{self.number}/{self.webhook}"[:128]

    @property
    def under_way(self) -> bool:
        return self.step in {Step.CREATE, Step.RENEW, Step.REMOVE}

    def arguments(self, event_types: list[str]) -> bytes:
        """What the contract gives to such an action."""
        given: dict[str, Any] = {"webhook": self.webhook, "url": self.url, "event_types": event_types}
        return json.dumps(given | {"subscription_id": self.subscription_id}).encode()


def wanted(was: Subscription, wish: Wish | None, now: datetime) -> Subscription:
    """What is to be done about one that nothing is under way for."""
    if was.under_way or was.due > now:
        return was
    if was.step is Step.GONE:
        return was if wish is None else begun(replace(was, url=wish.url), Step.CREATE)
    if wish is None or wish.url != was.url:
        return begun(was, Step.REMOVE)
    if was.renew_time is not None and was.renew_time <= now:
        return begun(was, Step.RENEW if wish.renew and (was.expire_time or now) > now else Step.CREATE)
    return was


def begun(was: Subscription, step: Step) -> Subscription:
    return replace(was, step=step, number=was.number + 1, operation=None)


def concluded(was: Subscription, progress: Progress, wish: Wish | None, now: datetime) -> Subscription:
    """What the operation of its step came to; itself while that is not known."""
    if progress.needs_person:
        return replace(was, failure=progress.failure, due=now + LOOK)
    if not progress.ended:
        return was
    if progress.state is State.SUCCEEDED:
        return gone(was) if was.step is Step.REMOVE else _made(was, progress, now)
    kind = progress.failure.kind if progress.failure is not None else FailureKind.FAILURE_KIND_UNSPECIFIED
    if kind == FailureKind.FAILURE_KIND_NOT_FOUND:
        if was.step is Step.REMOVE:
            return gone(was)
        if was.step is Step.RENEW:
            return begun(replace(was, subscription_id=""), Step.CREATE)
    return _failed(was, progress.failure, wish, now)


def failed(was: Subscription, failure: Failure, now: datetime) -> Subscription:
    """It could not even be submitted."""
    pause = min(LONGEST, RETRY * 2 ** min(was.failures, 20))
    return replace(was, failures=was.failures + 1, failure=failure, due=now + pause)


def _failed(was: Subscription, failure: Failure | None, wish: Wish | None, now: datetime) -> Subscription:
    if was.step is Step.CREATE and wish is None and not was.subscription_id:
        return gone(was)  # nobody wants it any more, and there is none
    step = was.step
    if wish is None and step is not Step.REMOVE:
        step = Step.REMOVE
    told = failure or Failure(kind=FailureKind.FAILURE_KIND_TRANSIENT, reason="NOT_DONE")
    return failed(begun(was, step), told, now)


def _made(was: Subscription, progress: Progress, now: datetime) -> Subscription:
    try:
        subscription_id, expires = _read(progress.output or b"{}")
    except ValueError as wrong:
        told = Failure(
            kind=FailureKind.FAILURE_KIND_INTERNAL, reason="OUTPUT_UNUSABLE", message=str(wrong)[:500]
        )
        # It was made, or is there: creating finds the one that is there.
        return failed(begun(was, Step.CREATE), told, now)
    renew = None if expires is None else now + max(timedelta(0), expires - now) * EARLY
    return replace(
        was,
        step=Step.IDLE,
        operation=None,
        subscription_id=subscription_id or was.subscription_id,
        expire_time=expires,
        renew_time=renew,
        due=now,
        failures=0,
        failure=None,
    )


def gone(was: Subscription) -> Subscription:
    """There is nothing left of it that is ours to see to."""
    return replace(
        was,
        step=Step.GONE,
        operation=None,
        subscription_id="",
        expire_time=None,
        renew_time=None,
        failures=0,
        failure=None,
    )


def _read(output: bytes) -> tuple[str, datetime | None]:
    """ValueError where the answer is not what the contract says."""
    document = json.loads(output)
    given, expires = document.get("subscription_id"), document.get("expires_at")
    if not isinstance(given, str | int) or not str(given) or len(str(given).encode()) > ID_BYTES:
        raise ValueError("the action's output names no subscription_id")
    if expires in {None, ""}:
        return str(given), None
    if not isinstance(expires, str):
        raise ValueError("the output's expires_at is no RFC 3339 time")
    moment = datetime.fromisoformat(expires)
    return str(given), moment if moment.tzinfo else moment.replace(tzinfo=UTC)
