"""`plugin.toml` read into the contract's message, by the message's own descriptor.

The rules stand at the top of `manifest.proto`. A key that the contract does not know is an error: a misspelt
one would silently mean its default.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tieline.plugin.v1.manifest_pb2 import Manifest

Place = tuple[str | int, ...]


class ManifestError(ValueError):
    """What is wrong, and at which key: `("webhooks", 0, "answer", "status")`."""

    def __init__(self, place: Place, why: str, line: int = 0) -> None:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        super().__init__(f"{where}: {why}" if where else why)
        self.place = place
        self.why = why
        self.line = line


def read_manifest(path: Path) -> Manifest:
    text = _text(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise ManifestError((), f"it is not TOML ({error})", line) from error
    return _Reader(path.parent).read(table)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ManifestError((), f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ManifestError((), "it is not UTF-8 text") from error


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, table: dict[str, Any]) -> Manifest:
        document = self._message(Manifest.DESCRIPTOR, table, ())
        try:
            return json_format.ParseDict(document, Manifest())
        except json_format.ParseError as error:
            raise ManifestError(_place_of(str(error)), str(error)) from error

    def _message(self, kind: Descriptor, table: Any, place: Place) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise ManifestError(place, "a table is needed")
        known = kind.fields_by_name
        for key in table:
            if key not in known:
                raise ManifestError((*place, key), "there is no such key")
        for choice in kind.oneofs:
            names = {field.name for field in choice.fields}
            chosen = [key for key in table if key in names]
            if len(chosen) > 1:
                raise ManifestError((*place, chosen[1]), f"it cannot stand beside `{chosen[0]}`")
        return {key: self._field(known[key], value, (*place, key)) for key, value in table.items()}

    def _field(self, field: FieldDescriptor, value: Any, place: Place) -> Any:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if not isinstance(value, dict):
                raise ManifestError(place, "a table is needed")
            entry = field.message_type.fields_by_name["value"]
            return {key: self._one(entry, item, (*place, key)) for key, item in value.items()}
        if not field.is_repeated:
            return self._one(field, value, place)
        if not isinstance(value, list):
            raise ManifestError(place, "a list is needed")
        return [self._one(field, item, (*place, index)) for index, item in enumerate(value)]

    def _one(self, field: FieldDescriptor, value: Any, place: Place) -> Any:
        if field.enum_type is not None:
            return _enum(field.enum_type, value, place)
        if field.message_type is not None and field.message_type.file.package != "google.protobuf":
            return self._message(field.message_type, value, place)
        if field.type == field.TYPE_BYTES:
            return base64.b64encode(self._json(value, place)).decode()
        wanted = _SCALARS.get(field.type, str)  # a duration is written as text
        if type(value) is not wanted:
            raise ManifestError(place, f"expected {_WORDS[wanted]}")
        return value

    def _json(self, value: Any, place: Place) -> bytes:
        if isinstance(value, str) and value.startswith("@"):
            value = self._beside(value[1:], place)
        if not isinstance(value, dict):
            raise ManifestError(place, "expected a table, or `@` and the name of a JSON file beside this one")
        try:
            return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError):
            raise ManifestError(place, "it holds something that JSON has no word for") from None

    def _beside(self, name: str, place: Place) -> Any:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder.resolve()):
            raise ManifestError(place, f"{name} is not beside this file")
        try:
            return json.loads(path.read_bytes())
        except OSError as error:
            raise ManifestError(place, f"{name} cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise ManifestError(place, f"{name} is not JSON") from error


_SCALARS: dict[int, type] = {
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_DOUBLE: float,
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _enum(kind: EnumDescriptor, value: Any, place: Place) -> str:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper()
    choices = [name.removeprefix(f"{prefix}_").lower() for name in kind.values_by_name][1:]
    if value not in choices:
        raise ManifestError(place, f"it is none of {', '.join(choices)}")
    return f"{prefix}_{value.upper()}"


def _place_of(complaint: str) -> Place:
    """Where the JSON parser of the messages stopped: it says `at Manifest.limits.startup`."""
    found = re.search(r"at Manifest\.([\w.\[\]]+)", complaint)
    if found is None:
        return ()
    parts = re.findall(r"\w+", found[1])
    return tuple(int(part) if part.isdigit() else part for part in parts)
