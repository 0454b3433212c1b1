"""What is told of a plugin's death: why, the last it said, and what it was working on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from foundation.process.output import CUT
from foundation.process.supervised import Report
from services.registry.host.secrets import COVER, Secrets
from services.registry.host.texts import plain

_CUT = CUT.decode()
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


def redacted(text: str, secrets: Secrets, *, is_tail: bool = False) -> str:
    """Without the values that the process was given, without what looks like a secret, and fit for a terminal.

    A tail, and a line that says so, was cut out of something longer, and perhaps a value was cut with it.
    """
    if secrets:
        text = secrets.covered(text)
        if is_tail:
            text = secrets.begun_within(text)
        if text.endswith(_CUT):
            text = secrets.ended_within(text.removesuffix(_CUT)) + _CUT
    text = _PEM.sub(COVER, text)
    text = _LOGIN.sub(f"://{COVER}@", text)
    return plain(_TELLTALE.sub(rf"\1{COVER}", text))
