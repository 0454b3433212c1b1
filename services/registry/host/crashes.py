"""What is told of a plugin's death: why, the last it said, and what it was working on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from foundation.process.supervised import Report

COVER = "…"
_SHORTEST_SECRET = 6

_OUT_OF_MEMORY = re.compile(r"MemoryError|std::bad_alloc|[Oo]ut of memory|cannot allocate memory")
_TELLTALE = re.compile(
    r"(?i)((?:password|passwd|secret|token|authorization|api[_-]?key|private[_-]?key|cookie)[\"']?\s*[:=]\s*"
    r"(?:bearer\s+|basic\s+)?)(\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
)
_LOGIN = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Crash:
    time: datetime
    report: Report
    tail: str
    """Redacted."""
    suspects: tuple[str, ...] = ()
    """Inputs that were in flight."""

    @property
    def out_of_memory(self) -> bool:
        return "of memory" in self.report.sentence or bool(_OUT_OF_MEMORY.search(self.tail))


def redacted(text: str, secrets: Iterable[bytes] = ()) -> str:
    """Without the values that the process was given, and without what looks like a secret."""
    for secret in sorted(secrets, key=len, reverse=True):
        value = secret.decode(errors="backslashreplace")
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, COVER)
    text = _PEM.sub(COVER, text)
    text = _LOGIN.sub(f"://{COVER}@", text)
    return _TELLTALE.sub(rf"\1{COVER}", text)
