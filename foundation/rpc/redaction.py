"""Messages as they may be shown: fields that the contract marks sensitive are covered."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tieline.common.v1 import options_pb2 as contract

COVERED = "…"
_TEXT_LIMIT = 200


def redacted(message: Message) -> dict[str, Any]:
    """What is set in a message, secrets covered and long values cut."""
    return {field.name: _shown(field, value) for field, value in message.ListFields()}


def _shown(field: FieldDescriptor, value: Any) -> Any:
    if field.GetOptions().Extensions[contract.sensitive]:
        return COVERED
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _one(inner, item) for key, item in value.items()}
    if field.is_repeated:
        return [_one(field, item) for item in value[:20]]
    return _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return redacted(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        # Bytes are payloads: their size helps, their content may be anybody's.
        return f"{len(value)} bytes"
    if isinstance(value, str) and len(value) > _TEXT_LIMIT:
        return value[:_TEXT_LIMIT] + COVERED
    return value
