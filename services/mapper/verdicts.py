"""What waits in the inbox, and the four things that can become of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Self, TypeAlias
from uuid import UUID

from services.mapper.stamping import StampedEvent
from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.common.v1.failure_pb2 import Failure
from tieline.mapper.v1.dead_letters_pb2 import DeadLetter
from tieline.mapper.v1.events_pb2 import Delivery


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that was accepted and nothing has become of yet, with its original."""

    tenant: str
    id: UUID
    connection: str
    channel: str
    key: str
    event_type: str
    content_type: str
    headers: bytes
    body: bytes
    sha256: bytes
    received_at: datetime
    verified: bool
    traceparent: str
    attempts: int

    @property
    def polled(self) -> bool:
        """We went and fetched it, so nobody had to prove anything."""
        return Delivery.FromString(self.headers).HasField("record")

    @classmethod
    def of(cls, row: Any) -> Self:
        return cls(**{name: getattr(row, name) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Stored:
    state: ClassVar[int] = 1
    reason: ClassVar[str] = ""
    events: Sequence[StampedEvent]


@dataclass(frozen=True, slots=True)
class Skipped:
    state: ClassVar[int] = 2
    events: ClassVar[tuple[StampedEvent, ...]] = ()
    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """It can never work as it is: kept with its original until somebody deals with it."""

    state: ClassVar[int] = 3
    events: ClassVar[tuple[StampedEvent, ...]] = ()
    stage: DeadLetter.Stage.ValueType
    failure: Failure
    diagnostics: Sequence[Diagnostic] = ()
    plugin_version: str = ""

    @property
    def reason(self) -> str:
        return self.failure.reason


@dataclass(frozen=True, slots=True)
class Postponed:
    """It stays waiting, and with it what came after it on the same connection."""

    failure: Failure
    seconds: float


Verdict: TypeAlias = Stored | Skipped | Dead | Postponed
Judged: TypeAlias = tuple[Waiting, Verdict]
