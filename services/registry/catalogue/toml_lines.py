"""Where in a TOML text a key stands: the parser forgets, and people want to know."""

from __future__ import annotations

import re
from collections.abc import Sequence

Place = Sequence[str | int]

_TABLE = re.compile(r"\s*\[(\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_.$-]+)["']?\s*=""")


def line_of(text: str, place: Place) -> int:
    """The line, from 1, of the key or of the nearest table around it; 0 where there is none.

    Good enough for messages: a key inside an inline table is found at the line on which that begins.
    """
    wanted, best, found = tuple(map(str, place)), 0, 0
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if heading := _TABLE.match(line):
            table = _table(heading[2], is_item=bool(heading[1]), counts=counts)
            here = table
        elif key := _KEY.match(line):
            here = (*table, *key[1].split("."))
        else:
            continue
        if here == wanted[: len(here)] and len(here) > best:
            best, found = len(here), number
    return found


def _table(name: str, *, is_item: bool, counts: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """`webhooks.signature` below the second `[[webhooks]]` is `webhooks 1 signature`."""
    place: tuple[str, ...] = ()
    parts = [part.strip().strip("\"'") for part in name.split(".")]
    for depth, part in enumerate(parts):
        place = (*place, part)
        if is_item and depth == len(parts) - 1:
            counts[place] = counts.get(place, -1) + 1
        if place in counts:
            place = (*place, str(counts[place]))
    return place
