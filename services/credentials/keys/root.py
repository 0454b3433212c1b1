"""The root key: outside the database, kept by whoever is trusted with it.

A keeper of another kind is one class more, with these names, and one line in `keepers.py`. What a keeper seals
begins, as all sealed texts do, with its fingerprint as the name of the key: so it is seen without any attempt
which root key a text wants.
"""

from __future__ import annotations

from typing import Protocol


class RootKey(Protocol):
    @property
    def keeper(self) -> str:
        """What kind of keeper has it: `file`, `aws-kms`."""

    @property
    def fingerprint(self) -> str:
        """Eight bytes in hex: tells one root key from another, and tells nothing about it. Known once prepared."""

    async def prepare(self) -> None:
        """Reaches whoever keeps the key, or raises DEPENDENCY_UNAVAILABLE: then it is worth asking again."""

    async def seal(self, plain: bytes, where: bytes) -> bytes: ...

    async def unseal(self, sealed: bytes, where: bytes) -> bytes:
        """Raises `Unopenable` for what this key did not seal for this place."""
