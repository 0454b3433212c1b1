"""What the root key seals, as rows hold it."""

from __future__ import annotations

from dataclasses import dataclass

from services.credentials.keys.envelope import name_of


@dataclass(frozen=True, slots=True)
class Copies:
    """One secret under one root key or under two; either opens it."""

    sealed: bytes | None
    """None once it is destroyed."""
    sealed_other: bytes | None = None

    def named(self, fingerprint: str) -> bytes | None:
        """The copy under that root key."""
        name = bytes.fromhex(fingerprint)
        return next(
            (copy for copy in (self.sealed, self.sealed_other) if copy and name_of(copy) == name), None
        )
