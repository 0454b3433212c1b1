"""Inputs in, drafts out. What a draft may not hold is cut here, so that no plugin has to count bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tieline.event.v1 import content_pb2
from tieline.plugin.v1 import transform_pb2
from tieline.sdk._convert.texts import clean
from tieline.sdk.core import Change, Event, Evidence, Failing, Input, InvalidInput

ENTITIES, EVIDENCE, HINTS, PATHS, FRAMES, DRAFTS = 100, 50, 50, 300, 50, 1000
TITLE, NAME = 256, 512
METADATA, ATTRIBUTES = 4 * 1024, 64 * 1024


def moment(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value if value.tzinfo else value.replace(tzinfo=UTC))
    return stamp


def to_input(message: transform_pb2.TransformInput) -> Input:
    received = message.received_at.ToDatetime(UTC) if message.HasField("received_at") else None
    return Input(
        id=message.input_id,
        payload=message.payload,
        webhook=message.webhook,
        stream=message.stream,
        document=message.document,
        content_type=message.content_type,
        headers={header.name: header.value for header in message.headers},
        event_type=message.event_type,
        key=message.key,
        version=message.version,
        received_at=received,
    )


def to_drafts(events: Iterable[Event]) -> transform_pb2.TransformOutcome.EventDrafts:
    drafts = [to_draft(event) for event in events]
    if not drafts or len(drafts) > DRAFTS:
        raise ValueError(f"an input becomes 1 to {DRAFTS} events, not {len(drafts)}; to make none, skip it")
    return transform_pb2.TransformOutcome.EventDrafts(drafts=drafts)


def to_draft(event: Event) -> transform_pb2.EventDraft:
    draft = transform_pb2.EventDraft(
        external_key=_key(event.external_key),
        ordering_key=_key(event.ordering_key),
        origin_operation_id=event.origin_operation_id,
        category=content_pb2.Category.Value(f"CATEGORY_{event.category.name}"),
        type=event.type,
        title=clean(" ".join(event.title.split()), TITLE),
        occurred_at=moment(event.occurred_at),
        entities=[
            content_pb2.Entity(
                kind=entity.kind,
                id=clean(entity.id, NAME),
                title=clean(entity.title, TITLE),
                url=_url(entity.url),
                part=content_pb2.Entity.Part.Value(f"PART_{entity.part.name}"),
            )
            for entity in event.entities[:ENTITIES]
            if entity.id
        ],
        evidence=[_evidence(item) for item in event.evidence[:EVIDENCE] if _url(item.url)],
        hints=[
            content_pb2.Hint(
                kind=content_pb2.Hint.Kind.Value(f"KIND_{hint.kind.name}"),
                value=clean(hint.value, NAME),
                confidence=hint.confidence,
            )
            for hint in event.hints[:HINTS]
        ],
        attributes=_json(event.attributes, ATTRIBUTES),
    )
    if event.severity is not None:
        draft.severity = content_pb2.Severity.Value(f"SEVERITY_{event.severity.name}")
    if event.object is not None:
        draft.object.CopyFrom(
            content_pb2.ObjectVersion(
                kind=event.object.kind,
                id=clean(event.object.id, NAME),
                version=clean(event.object.version, NAME),
            )
        )
    if event.change is not None:
        draft.change.CopyFrom(_change(event.change))
    if event.failing is not None:
        draft.failure.CopyFrom(_failing(event.failing))
    return draft


def _evidence(item: Evidence) -> content_pb2.Evidence:
    return content_pb2.Evidence(
        kind=item.kind,
        url=_url(item.url),
        description=clean(item.description, TITLE),
        metadata=_json(item.metadata, METADATA),
    )


def _change(change: Change) -> content_pb2.ChangeFacts:
    return content_pb2.ChangeFacts(
        kind=content_pb2.ChangeFacts.Kind.Value(f"KIND_{change.kind.name}"),
        began_at=moment(change.began_at),
        ended_at=moment(change.ended_at),
        paths=[clean(path) for path in change.paths[:PATHS]],
        paths_truncated=len(change.paths) > PATHS,
    )


def _failing(failing: Failing) -> content_pb2.FailureFacts:
    kind = content_pb2.FailureFacts
    return kind(
        state=kind.STATE_RECOVERED if failing.recovered else kind.STATE_FAILING,
        onset_at=moment(failing.onset_at),
        key=_key(failing.key),
        frames=[clean(frame) for frame in failing.frames[:FRAMES]],
    )


def _key(text: str) -> str:
    """A key is never cut: two things could then be one."""
    if len(text.encode(errors="replace")) > NAME:
        raise InvalidInput(f"a key of it is longer than {NAME} bytes", "KEY_TOO_LONG")
    return clean(text, NAME)


def _url(url: str) -> str:
    return clean(url, 2048) if url.startswith("https://") and len(url) <= 2048 else ""


def _json(value: Mapping[str, Any], limit: int) -> bytes:
    """Compact, in one order, and left out whole where it is too large: half a document is none."""
    if not value:
        return b""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() if len(text) <= limit else b""
