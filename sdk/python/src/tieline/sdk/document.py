"""Reading JSON that somebody else wrote: whatever it is, the answer is a value of the type asked for or an error.

doc.text("pull_request", "merged_at")     "" where it is absent or null
doc.need_text("repository", "full_name")  a DocumentError where it is
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class DocumentError(ValueError):
    """The document is not what was asked of it; says where, and never what stood there."""


class Document:
    """A JSON object, and the path that led to it."""

    __slots__ = ("_path", "_value")

    def __init__(self, value: Mapping[str, Any], path: str = "") -> None:
        self._value = value
        self._path = path

    @classmethod
    def parse(cls, raw: bytes) -> Document:
        try:
            text = raw.decode()
            value = json.loads(text, parse_constant=_refuse)
            if _HALF.search(text):
                # Half a character that JSON can spell and UTF-8 cannot.
                whole = json.dumps(value, ensure_ascii=False).encode(errors="replace")
                value = json.loads(whole)
        except RecursionError:
            raise DocumentError("it is nested too deeply") from None
        except ValueError:  # of the text, of its encoding, of a number with thousands of digits
            raise DocumentError("it is not JSON in UTF-8") from None
        if not isinstance(value, dict):
            raise DocumentError("it is not a JSON object")
        return cls(value)

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def at(self, *path: str) -> Document:
        """The object there; an empty one where there is none."""
        found: dict[str, Any] | None = self._find(path, dict)
        return Document(found if found is not None else {}, self._place(path))

    def objects(self, *path: str) -> Iterator[Document]:
        """The objects of the list there."""
        for index, item in enumerate(self._find(path, list) or ()):
            place = f"{self._place(path)}/{index}"
            if not isinstance(item, dict):
                raise DocumentError(f"{place} is not an object")
            yield Document(item, place)

    def texts(self, *path: str) -> list[str]:
        """The texts of the list there."""
        found: list[str] = self._find(path, list) or []
        if not all(isinstance(item, str) for item in found):
            raise DocumentError(f"{self._place(path)} is not a list of texts")
        return found

    def text(self, *path: str) -> str:
        found: str | None = self._find(path, str)
        return found or ""

    def number(self, *path: str) -> int:
        """A whole number; 0 where there is none."""
        found: int | None = self._find(path, int)
        return found or 0

    def flag(self, *path: str) -> bool:
        found: bool | None = self._find(path, bool)
        return found or False

    def time(self, *path: str) -> datetime | None:
        """A moment: RFC 3339, or seconds since 1970."""
        found: str | int | None = self._find(path, (str, int))
        if found is None or found == "":
            return None
        try:
            if isinstance(found, int):
                return datetime.fromtimestamp(found, UTC)
            moment = datetime.fromisoformat(found)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError, OSError):
            raise DocumentError(f"{self._place(path)} is not a moment") from None

    def need_text(self, *path: str) -> str:
        return self.text(*path) or self._missing(path)

    def need_number(self, *path: str) -> int:
        return self.number(*path) or self._missing(path)

    def _missing(self, path: tuple[str, ...]) -> NoReturn:
        raise DocumentError(f"{self._place(path)} is missing")

    def _place(self, path: tuple[str, ...]) -> str:
        return "/".join((self._path, *path))

    def _find(self, path: tuple[str, ...], kind: type | tuple[type, ...]) -> Any:
        value: Any = self._value
        for depth, name in enumerate(path):
            if not isinstance(value, dict):
                raise DocumentError(f"{self._place(path[:depth])} is not an object")
            value = value.get(name)
            if value is None:
                return None
        # `True` is an int to Python and to nobody else.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DocumentError(f"{self._place(path)} is of another type than expected")
        return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
