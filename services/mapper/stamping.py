"""From a plugin's draft to an event: the platform's own fields are set here, and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from services.mapper.names import delivery_name, event_id
from tieline.event.v1.content_pb2 import SEVERITY_INFO, SEVERITY_UNSPECIFIED
from tieline.event.v1.event_pb2 import (
    AUTHENTICITY_POLLED,
    AUTHENTICITY_UNVERIFIED,
    AUTHENTICITY_VERIFIED,
    Authenticity,
    Event,
    RawReference,
    Source,
)
from tieline.plugin.v1.transform_pb2 import EventDraft

SCHEMA_VERSION = 1


class Original(Protocol):
    """What a delivery tells about the events that are made from it."""

    @property
    def tenant(self) -> str: ...
    @property
    def id(self) -> UUID: ...
    @property
    def connection(self) -> str: ...
    @property
    def channel(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def sha256(self) -> bytes: ...
    @property
    def received_at(self) -> datetime: ...
    @property
    def verified(self) -> bool: ...
    @property
    def polled(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class StampedEvent:
    id: UUID
    occurred_at: datetime
    stored_at: datetime
    message: Event


def stamp(
    drafts: Iterable[EventDraft], original: Original, plugin_version: str, now: datetime
) -> list[StampedEvent]:
    """The drafts have been validated, so nothing here can fail."""
    ordinals: Counter[str] = Counter()
    stamped = []
    for draft in drafts:
        ordinal = ordinals[draft.external_key]
        ordinals[draft.external_key] += 1
        stamped.append(_stamp(draft, ordinal, original, plugin_version, now))
    return stamped


def _stamp(
    draft: EventDraft, ordinal: int, original: Original, plugin_version: str, now: datetime
) -> StampedEvent:
    identity = event_id(original.connection, draft.external_key, ordinal)
    event = _content(draft)
    event.schema_version = SCHEMA_VERSION
    event.id = str(identity)
    event.tenant = f"tenants/{original.tenant}"
    event.connection = original.connection
    event.source.CopyFrom(_source(draft.type, plugin_version, original.channel))
    event.received_at.FromDatetime(original.received_at)
    event.stored_at.FromDatetime(now)
    event.authenticity = _authenticity(original)
    event.raw.CopyFrom(
        RawReference(
            delivery=delivery_name(original.tenant, original.id),
            sha256=original.sha256,
            size_bytes=len(original.body),
            content_type=original.content_type,
        )
    )
    event.ordinal = ordinal
    if event.severity == SEVERITY_UNSPECIFIED:
        event.severity = SEVERITY_INFO
    if not event.HasField("occurred_at"):
        event.occurred_at.CopyFrom(event.received_at)
    return StampedEvent(identity, event.occurred_at.ToDatetime(UTC), now, event)


def _content(draft: EventDraft) -> Event:
    """Fields of the same name mean the same in both messages; that is the contract."""
    given = {field.name: value for field, value in draft.ListFields()}
    return Event(**given)


def _authenticity(original: Original) -> Authenticity.ValueType:
    if original.polled:
        return AUTHENTICITY_POLLED
    return AUTHENTICITY_VERIFIED if original.verified else AUTHENTICITY_UNVERIFIED


def _source(type_: str, version: str, channel: str) -> Source:
    """A type begins with the name of the plugin that it is documented by."""
    return Source(plugin=type_.partition(".")[0], version=version, channel=channel)
