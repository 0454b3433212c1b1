"""What one life of a plugin's process holds ready. It is forgotten with that life."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Prepared:
    """One instance, as the process was given it."""

    revision: int = 0
    credentials: dict[tuple[str, str], int] = field(default_factory=dict)
    """Versions, by slot and entry."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whoever gives or takes something: one after the other, so that the last word is the last that arrives."""
    connection: str = ""
    """Whose it is."""
