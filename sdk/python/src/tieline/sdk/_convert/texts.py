"""Text that every database and every language takes."""

from __future__ import annotations


def clean(text: str, limit: int = 4096) -> str:
    """Text that every database and every language takes: no NUL, no half of a character, not too long."""
    if len(text) <= limit and text.isascii() and "\0" not in text:
        return text
    raw = text.replace("\0", "\ufffd").encode(errors="replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"
