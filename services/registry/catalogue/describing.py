"""Whether a process says of itself what its manifest says of it."""

from __future__ import annotations

import json

from google.protobuf.message import Message

from tieline.plugin.v1.manifest_pb2 import Manifest


def difference(wanted: Manifest, told: Manifest) -> str:
    """The fields in which two manifests differ; JSON is compared by what it means, not by its spaces."""
    left, right = _normal(wanted), _normal(told)
    return ", ".join(
        name for name in left.DESCRIPTOR.fields_by_name if _field(left, name) != _field(right, name)
    )


def _field(message: Message, name: str) -> object:
    part = type(message)()
    part.CopyFrom(message)
    for other in message.DESCRIPTOR.fields_by_name:
        if other != name:
            part.ClearField(other)
    return part


def _normal(manifest: Manifest) -> Manifest:
    normal = Manifest()
    normal.CopyFrom(manifest)
    normal.settings_schema = _json(normal.settings_schema)
    for action in normal.actions:
        action.input_schema, action.output_schema = _json(action.input_schema), _json(action.output_schema)
    for lookup in normal.lookups:
        lookup.input_schema = _json(lookup.input_schema)
    return normal


def _json(raw: bytes) -> bytes:
    try:
        return json.dumps(json.loads(raw), sort_keys=True).encode() if raw else raw
    except (ValueError, RecursionError):
        return raw
