"""The limits of the canonical event, as the contract states them field by field: what is outside is not stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sized

from google.protobuf.timestamp_pb2 import Timestamp

from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.event.v1.content_pb2 import CATEGORY_UNSPECIFIED, Category, Entity, Evidence, Hint, Severity
from tieline.plugin.v1.transform_pb2 import EventDraft

DRAFT_BYTES = 1024 * 1024
"""Far above what all limits allow together in practice; keeps every message of the bus small."""

_TYPE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MOST = 20  # diagnostics of one draft: whoever mends the plugin needs no more
Found = Iterator[tuple[str, str]]
"""Where, as a JSON pointer, and what is wrong there."""


def validate(draft: EventDraft) -> list[Diagnostic]:
    """What is wrong with a draft; nothing, if it may become an event."""
    found = []
    for pointer, summary in _all(draft):
        found.append(Diagnostic(severity=Diagnostic.SEVERITY_ERROR, pointer=pointer, summary=summary))
        if len(found) == _MOST:
            break
    return found


def _all(draft: EventDraft) -> Found:
    if draft.ByteSize() > DRAFT_BYTES:
        yield "", f"larger than {DRAFT_BYTES} bytes"
        return
    yield from _text("/external_key", draft.external_key, 512, required=True)
    yield from _text("/ordering_key", draft.ordering_key, 512)
    yield from _text("/title", draft.title, 256, required=True)
    yield from _text("/type", draft.type, 256, required=True)
    if draft.type and not _TYPE.fullmatch(draft.type):
        yield "/type", "not dotted lower-case words"
    if draft.category == CATEGORY_UNSPECIFIED or draft.category not in Category.values():
        yield "/category", "no category that there is"
    if draft.severity not in Severity.values():
        yield "/severity", "no severity that there is"
    yield from _lists(draft)
    yield from _json("/attributes", draft.attributes, 64 * 1024)
    yield from _times(draft)


def _lists(draft: EventDraft) -> Found:
    limits: dict[str, tuple[Sized, int]] = {
        "/entities": (draft.entities, 100),
        "/evidence": (draft.evidence, 50),
        "/hints": (draft.hints, 50),
        "/change/paths": (draft.change.paths, 300),
        "/failure/frames": (draft.failure.frames, 50),
    }
    for pointer, (items, most) in limits.items():
        if len(items) > most:
            yield pointer, f"{len(items)} items, at most {most} are allowed"
    for index, entity in enumerate(draft.entities):
        yield from _entity(f"/entities/{index}", entity)
    for index, evidence in enumerate(draft.evidence):
        yield from _evidence(f"/evidence/{index}", evidence)
    for index, hint in enumerate(draft.hints):
        yield from _hint(f"/hints/{index}", hint)
    for index, measurement in enumerate(draft.measurements):
        if len(measurement.values) > 1440:
            yield f"/measurements/{index}/values", "more than 1440 values"


def _entity(pointer: str, entity: Entity) -> Found:
    if not _KIND.fullmatch(entity.kind):
        yield f"{pointer}/kind", "not a lower-case word of at most 63 characters"
    yield from _text(f"{pointer}/id", entity.id, 512, required=True)


def _evidence(pointer: str, evidence: Evidence) -> Found:
    if not evidence.kind:
        yield f"{pointer}/kind", "empty"
    if evidence.url and not evidence.url.startswith("https://"):
        yield f"{pointer}/url", "not https"
    yield from _json(f"{pointer}/metadata", evidence.metadata, 4 * 1024)


def _hint(pointer: str, hint: Hint) -> Found:
    if not 0 <= hint.confidence <= 1:  # false for NaN too
        yield f"{pointer}/confidence", "not from 0 to 1"


def _text(pointer: str, value: str, most: int, *, required: bool = False) -> Found:
    if required and not value:
        yield pointer, "empty, and required"
    if len(value.encode()) > most:
        yield pointer, f"longer than {most} bytes"
    if "\0" in value:
        yield pointer, "holds a NUL, which no database keeps"


def _json(pointer: str, value: bytes, most: int) -> Found:
    if len(value) > most:
        yield pointer, f"longer than {most} bytes"
        return
    try:
        is_object = not value or isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        yield pointer, "no JSON object"


def _times(draft: EventDraft) -> Found:
    given: list[tuple[str, bool, Timestamp]] = [
        ("/occurred_at", draft.HasField("occurred_at"), draft.occurred_at),
        ("/change/began_at", draft.change.HasField("began_at"), draft.change.began_at),
        ("/change/ended_at", draft.change.HasField("ended_at"), draft.change.ended_at),
        ("/failure/onset_at", draft.failure.HasField("onset_at"), draft.failure.onset_at),
    ]
    for pointer, is_given, time in given:
        # A Timestamp may hold anything; only these are moments (RFC 3339 knows the years 1 to 9999).
        if is_given and not (-62_135_596_800 <= time.seconds <= 253_402_300_799 and 0 <= time.nanos < 10**9):
            yield pointer, "no moment between the years 1 and 9999"
