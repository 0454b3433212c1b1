"""A plugin's world as plain values. What each means is said in the contract, at the field of the same name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from tieline.sdk.document import Document, DocumentError


def _nothing() -> Mapping[Any, Any]:
    return MappingProxyType({})


class Category(Enum):
    DELIVERY = auto()
    SYSTEM = auto()
    SECURITY = auto()
    WORK = auto()
    CONVERSATION = auto()


class Severity(Enum):
    DEBUG = auto()
    INFO = auto()
    WARNING = auto()
    ERROR = auto()
    CRITICAL = auto()


class Part(Enum):
    SUBJECT = auto()
    ACTOR = auto()
    CONTEXT = auto()


@dataclass(frozen=True, slots=True)
class Entity:
    """Something in the world that an event is about; what joins events of different providers."""

    kind: str
    id: str
    title: str = ""
    url: str = ""
    part: Part = Part.CONTEXT

    def subject(self) -> Entity:
        return Entity(self.kind, self.id, self.title, self.url, Part.SUBJECT)

    def actor(self) -> Entity:
        return Entity(self.kind, self.id, self.title, self.url, Part.ACTOR)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something a person can look at. What is not https is left out when it is sent."""

    kind: str
    url: str
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Hint:
    class Kind(Enum):
        RESOURCE_ID = auto()
        TEMPORAL = auto()
        METADATA = auto()

    kind: Kind
    value: str
    confidence: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The event changed something, so it may explain a later failure."""

    class Kind(Enum):
        COMMIT = auto()
        MERGE = auto()
        DEPLOYMENT = auto()
        RELEASE = auto()
        CONFIGURATION = auto()
        FEATURE_FLAG = auto()

    kind: Kind
    began_at: datetime | None = None
    ended_at: datetime | None = None
    paths: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """Something does not work, or (with `recovered`) works again."""

    key: str
    recovered: bool = False
    onset_at: datetime | None = None
    frames: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    kind: str
    id: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as its plugin tells it; the platform stamps the rest."""

    type: str
    title: str
    external_key: str
    category: Category
    severity: Severity | None = None
    ordering_key: str = ""
    occurred_at: datetime | None = None
    entities: Sequence[Entity] = ()
    evidence: Sequence[Evidence] = ()
    hints: Sequence[Hint] = ()
    attributes: Mapping[str, Any] = field(default_factory=_nothing)
    change: Change | None = None
    failing: Failing | None = None
    object: ObjectVersion | None = None
    origin_operation_id: str = ""


@dataclass(frozen=True, slots=True)
class Skip:
    """The input says nothing worth an event. The reason is in capitals: PING, BOT_EDIT."""

    reason: str


Transformed = Skip | Event | Iterable[Event]


class FailureKind(Enum):
    TRANSIENT = auto()
    RATE_LIMITED = auto()
    AUTH_FAILED = auto()
    PERMISSION_DENIED = auto()
    INVALID_CONFIG = auto()
    INVALID_INPUT = auto()
    NOT_FOUND = auto()
    CONFLICT = auto()
    CURSOR_INVALID = auto()
    UNSUPPORTED = auto()
    INTERNAL = auto()
    NOT_PREPARED = auto()


class Effect(Enum):
    """What a failed action has changed at the provider. Who does not say, says UNKNOWN."""

    NONE = auto()
    """Nothing: it may be tried again."""
    APPLIED = auto()
    """Everything: only the answer was lost."""
    UNKNOWN = auto()
    """It cannot be known: nobody repeats it blindly."""


@dataclass(frozen=True, slots=True)
class ThrottleScope:
    """What has to wait for a rate limit: a bucket in the plugin's own words, or with none all there is."""

    class Reach(Enum):
        INSTANCE = auto()
        PLUGIN = auto()

    bucket: str = ""
    reach: Reach = Reach.INSTANCE


class Failure(Exception):  # noqa: N818 - the contract's word
    """What went wrong, in the one vocabulary. The message is for people: no secret, no payload.

    `retry_after` is in seconds. `credential` is the one that a provider refused (AUTH_FAILED).
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        message: str = "",
        *,
        diagnostics: Sequence[Diagnostic] = (),
        retry_after: float | None = None,
        throttle_scope: ThrottleScope | None = None,
        effect: Effect | None = None,
        credential: Credential | None = None,
    ) -> None:
        super().__init__(f"{kind.name} {reason}: {message}")
        self.kind = kind
        self.reason = reason
        self.message = message
        self.diagnostics = diagnostics
        self.retry_after = retry_after
        self.throttle_scope = throttle_scope
        self.effect = effect
        self.credential = credential


class InvalidInput(Failure):
    """This input can never work. It becomes a dead letter, alone."""

    def __init__(self, message: str, reason: str = "MALFORMED") -> None:
        super().__init__(FailureKind.INVALID_INPUT, reason, message)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing to know about settings; `pointer` is a JSON pointer into them."""

    class Severity(Enum):
        ERROR = auto()
        WARNING = auto()
        INFO = auto()

    summary: str
    pointer: str = ""
    detail: str = ""
    severity: Severity = Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One version of what fills one entry of a slot. Its fields are kept out of every representation."""

    slot: str
    entry: str
    version: int
    fields: Mapping[str, bytes] = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One configured use of the plugin: its settings, and the credentials it was given."""

    id: str
    revision: int
    settings: Mapping[str, Any]
    account_keys: Sequence[str] = ()
    flags: frozenset[str] = frozenset()
    credentials: Mapping[tuple[str, str], Credential] = field(default_factory=_nothing, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One delivery or record, with the bytes as the provider sent them."""

    id: str
    payload: bytes
    webhook: str = ""
    stream: str = ""
    document: bytes = b""
    content_type: str = ""
    headers: Mapping[str, bytes] = field(default_factory=_nothing)
    event_type: str = ""
    key: str = ""
    version: str = ""
    received_at: datetime | None = None

    def json(self) -> Document:
        """The document; what is not a JSON object is an InvalidInput, whatever else it may be."""
        try:
            return Document.parse(self.document or self.payload)
        except DocumentError as error:
            raise InvalidInput(str(error), "NOT_JSON") from None

    def header(self, name: str) -> str:
        return bytes(self.headers.get(name, b"")).decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to do at the provider, once for each key, however often it is asked for."""

    name: str
    arguments: Mapping[str, Any]
    """Valid against the action's input schema: the platform has looked."""
    key: str
    """Empty only where the action just reads."""
    operation_id: str = ""
    """A marker to leave at the provider, where there is room for one: the platform knows its echo by it."""
    attempt: int = 1
    pending_id: str = ""
    """What an earlier call answered in `Pending`."""


@dataclass(frozen=True, slots=True)
class Done:
    """It has its effect. `output` is valid against the action's output schema."""

    output: Mapping[str, Any] = field(default_factory=_nothing)
    written: Sequence[ObjectVersion] = ()
    """What was written, at the version it has now."""
    replayed: bool = False
    """It had been done already under this key; nothing was done now."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider is still at it: its id of the work, and in how many seconds to ask."""

    id: str = ""
    ask_after: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The work ended without its effect; the failure's effect says what is left behind."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class NeverArrived:
    """The provider is sure that it has none of it: it may be begun again."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """It cannot be told what became of it."""


Outcome = Done | Pending | Failed | NeverArrived | Unknown


@dataclass(frozen=True, slots=True)
class Health:
    """What was found when an instance was looked at."""

    class State(Enum):
        OK = auto()
        DEGRADED = auto()
        FAILED = auto()

    name: str
    state: State = State.OK
    failure: Failure | None = None


@runtime_checkable
class Transforms(Protocol):
    """Turns what arrives into events: a pure function, so that tomorrow gives what today gave."""

    def transform(self, instance: Instance, delivery: Input, /) -> Transformed: ...


@runtime_checkable
class Acts(Protocol):
    """Does something at the provider. Raises Failure: `effect` says what it has changed all the same."""

    async def act(self, instance: Instance, action: Action, /) -> Done | Pending: ...


@runtime_checkable
class TellsOutcomes(Protocol):
    """Says what became of an action (capability `get_operation`). Raises Failure where it cannot ask at the moment."""

    async def outcome(self, instance: Instance, action: Action, /) -> Outcome: ...


@runtime_checkable
class Configures(Protocol):
    """Looks at settings that are valid by schema. Never asks the provider."""

    def configure(self, settings: Mapping[str, Any], /) -> Sequence[Diagnostic]: ...


@runtime_checkable
class Migrates(Protocol):
    """Writes settings of an older version as this one would. What cannot be translated is a Failure INVALID_CONFIG.

    Called again and again with the old document until the platform has stored the new one: the same every time.
    """

    def migrate(self, settings: Mapping[str, Any], from_version: str, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What the provider says of a credential that it accepts."""

    principal: str = ""
    account_keys: Sequence[str] = ()
    granted_scopes: Sequence[str] = ()
    missing_scopes: Sequence[str] = ()
    """Of those that the manifest declares."""


@runtime_checkable
class Probes(Protocol):
    """Asks the provider whether a credential works. One that it refuses is a Failure AUTH_FAILED."""

    async def probe(self, instance: Instance, credential: Credential, /) -> Probe: ...


@runtime_checkable
class ChecksHealth(Protocol):
    """Looks whether an instance can do its work: asks the provider, cheaply."""

    async def health(self, instance: Instance, /) -> Sequence[Health]: ...


Plugin = Transforms | Acts
