"""What plugins say, before anybody sees it: a terminal that shows it must not be steered by it."""

from __future__ import annotations

COVERED = "\N{REPLACEMENT CHARACTER}"
_CONTROLS = {number: COVERED for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\n\t"}


def plain(text: str) -> str:
    """Without characters that move a cursor, ring a bell or end a text early; lines and tabs stay."""
    return text if text.isprintable() else text.translate(_CONTROLS)
