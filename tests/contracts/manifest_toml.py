"""Read a manifest written in TOML into the contract's message, refusing every key it does not know."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from tieline.plugin.v1.manifest_pb2 import Manifest

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor


class ManifestError(ValueError):
    """What is wrong, and at which key."""


def read_manifest(text: str) -> Manifest:
    document = _message(Manifest.DESCRIPTOR, tomllib.loads(text), "")
    try:
        return json_format.ParseDict(document, Manifest())
    except json_format.ParseError as error:
        raise ManifestError(str(error)) from error


def _message(kind: Descriptor, table: Any, place: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ManifestError(f"{place}: a table is needed")
    known = kind.fields_by_name
    if strangers := set(table) - set(known):
        raise ManifestError(f"{place or 'manifest'}: unknown {sorted(strangers)}")
    return {key: _field(known[key], value, f"{place}.{key}".strip(".")) for key, value in table.items()}


def _field(field: FieldDescriptor, value: Any, place: str) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {key: _one(entry, item, f"{place}.{key}") for key, item in value.items()}
    if field.is_repeated:
        if not isinstance(value, list):
            raise ManifestError(f"{place}: a list is needed")
        return [_one(field, item, f"{place}[{index}]") for index, item in enumerate(value)]
    return _one(field, value, place)


def _one(field: FieldDescriptor, value: Any, place: str) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value, place)
    if field.message_type is not None and field.message_type.file.package != "google.protobuf":
        return _message(field.message_type, value, place)
    if field.type == field.TYPE_BYTES:
        return base64.b64encode(json.dumps(value, sort_keys=True).encode()).decode()
    return value


def _enum(kind: EnumDescriptor, value: Any, place: str) -> str:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper()
    name = f"{prefix}_{str(value).upper()}"
    if name not in kind.values_by_name or value != str(value).lower() or name.endswith("_UNSPECIFIED"):
        choices = [known.removeprefix(f"{prefix}_").lower() for known in kind.values_by_name][1:]
        raise ManifestError(f"{place}: {value!r} is none of {choices}")
    return name
