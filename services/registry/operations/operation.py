"""An operation as the registry keeps it: what is wanted, how that stands, and what is known of its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tieline.common.v1.failure_pb2 import Failure
from tieline.event.v1.content_pb2 import ObjectVersion
from tieline.plugin.v1.manifest_pb2 import Action


class State(StrEnum):
    """As the contract's Operation.State, in lower case."""

    QUEUED = "queued"
    RUNNING = "running"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    CANCELLED = "cancelled"
    DEAD_LETTERED = "dead_lettered"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.DEAD_LETTERED})


class Repeats(StrEnum):
    """What happens when the same key comes again; the contract's Action.Idempotency, in lower case."""

    READ_ONLY = "read_only"
    NATIVE = "native"
    CHECKED = "checked"
    NONE = "none"

    @classmethod
    def of(cls, action: Action) -> Repeats:
        name = Action.Idempotency.Name(action.idempotency or Action.IDEMPOTENCY_NONE)
        return cls(name.removeprefix("IDEMPOTENCY_").lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All of an operation that changes; `machine` says how."""

    state: State = State.QUEUED
    due: datetime | None
    """When the runner is to look at it; None: nobody does by itself."""
    start_deadline: datetime
    repeats: Repeats
    attempts: int = 0
    """Calls of the plugin so far."""
    faults: int = 0
    """Retries that are used up."""
    waits: int = 0
    """How often in a row nothing could be done; only says how long to wait."""
    asks: int = 0
    """How often it was asked in vain what became of it."""
    uncertain: bool = False
    """It may have its effect."""
    away: bool = False
    """It waits for its provider or its plugin, not for its turn."""
    cancel_wanted: bool = False
    resolved: bool | None = None
    """What a person said became of it."""
    pending_id: str = ""
    """The provider's id of the work that goes on there."""
    output: bytes | None = None
    failure: Failure | None = None
    written: Sequence[ObjectVersion] = field(default_factory=tuple)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def needs_person(self) -> bool:
        return self.state is State.AMBIGUOUS and self.due is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    tenant: str
    id: str
    position: int = 0
    """Order of submission."""
    connection: str
    """Its name."""
    action: str
    arguments: bytes
    key: str
    author: str
    cause: str
    ordering_key: str
    receives: bool = False
    """It is a part of receiving, which goes on while the connection rests or ends."""
    create_time: datetime
    state_time: datetime
    changes: int = 1
    """Grows with every change."""
    claim: int = 0
    """Grows whenever somebody takes it on, so that who was taken over from can no longer say anything."""
    timeout: float
    """Seconds that one attempt may take."""
    attempt_until: datetime | None = None
    """Until then a call of the last attempt may be under way, whoever made it."""
    progress: Progress

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/operations/{self.id}"
