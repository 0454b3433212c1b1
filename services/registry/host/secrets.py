"""The values that a process was given, and their covering in whatever it says.

An honest program prints a value as it is, quoted, encoded, or one line of it at a time; all of these are known
beforehand, because lines of output are many and so may the values be.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from urllib.parse import quote

COVER = "…"
_SHORTEST = 6
_SHORTEST_LINE = 16
"""Of a value of several lines, as keys are."""


class Secrets:
    def __init__(self, *values: bytes) -> None:
        self._values: set[bytes] = set()
        self._shapes: dict[str, list[str]] = {}
        """By how they begin, the longest first."""
        self.update(values)

    def __contains__(self, value: bytes) -> bool:
        return value in self._values

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: bytes) -> None:
        self.update([value])

    def update(self, *values: Iterable[bytes]) -> None:
        for value in {value for some in values for value in some} - self._values:
            self._values.add(value)
            for shape in set(_shapes(value)):
                alike = self._shapes.setdefault(shape[:_SHORTEST], [])
                alike.append(shape)
                alike.sort(key=len, reverse=True)

    def covered(self, text: str) -> str:
        if not self._shapes:
            return text
        parts, begin, at = [], 0, 0
        while at <= len(text) - _SHORTEST:
            alike = self._shapes.get(text[at : at + _SHORTEST])
            found = next((shape for shape in alike if text.startswith(shape, at)), "") if alike else ""
            if found:
                parts += [text[begin:at], COVER]
                begin = at = at + len(found)
            else:
                at += 1
        return "".join((*parts, text[begin:]))

    def begun_within(self, text: str) -> str:
        """Without the end of a value at its beginning, where it was cut."""
        for shape in (shape for alike in self._shapes.values() for shape in alike):
            for size in range(min(len(shape) - 1, len(text)), _SHORTEST - 1, -1):
                if text.startswith(shape[-size:]):
                    return COVER + text[size:]
        return text

    def ended_within(self, text: str) -> str:
        """Without the beginning of a value at its end, where it was cut."""
        for size in range(len(text), _SHORTEST - 1, -1):
            alike = self._shapes.get(text[-size:][:_SHORTEST], ())
            if any(shape.startswith(text[-size:]) for shape in alike):
                return text[:-size] + COVER
        return text


def _shapes(secret: bytes) -> Iterator[str]:
    value = secret.decode(errors="backslashreplace")
    if len(value) < _SHORTEST:
        return
    yield from (value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""), secret.hex())
    yield from (shape for shape in _in_base64(secret) if len(shape) >= _SHORTEST)
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE and not line.startswith("-----"))


def _in_base64(secret: bytes) -> Iterator[str]:
    """Whatever stands before and behind it, as a user's name does: the part that is its own is the same."""
    for before, lost in enumerate((0, 2, 3)):
        whole = (before + len(secret)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + secret).decode()[lost:whole]
