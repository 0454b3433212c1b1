"""The root keys that this process holds: the one in its settings, and perhaps the one that is to come.

What they seal is kept under one of them or under two, and any copy will do: so processes that hold the old one
and processes that hold the new one work side by side for as long as a change takes.
"""

from __future__ import annotations

from foundation.errors import Code, Problem
from services.credentials.keys.envelope import Unopenable, name_of
from services.credentials.keys.root import RootKey
from services.credentials.keys.store.copies import Copies


class RootKeys:
    def __init__(self, root: RootKey, staged: RootKey | None = None) -> None:
        self._held = [root] if staged is None else [root, staged]
        self.current = root
        """The one that seals."""

    @property
    def first(self) -> RootKey:
        """The one that the settings name as the root key."""
        return self._held[0]

    @property
    def staged(self) -> RootKey | None:
        """The one that would come next."""
        return next((key for key in self._held if key.fingerprint != self.current.fingerprint), None)

    async def prepare(self) -> None:
        for key in self._held:
            await key.prepare()

    def held(self, fingerprint: str) -> RootKey | None:
        return next((key for key in self._held if key.fingerprint == fingerprint), None)

    async def unseal(self, copies: Copies, where: bytes, what: str) -> bytes:
        """From the copy that a key of ours sealed; the problem names the keys where there is none."""
        for key in self._held:
            if (sealed := copies.named(key.fingerprint)) is not None:
                try:
                    return await key.unseal(sealed, where)
                except Unopenable as error:
                    raise Problem(Code.SECRET_UNOPENABLE, what=what, why=str(error)) from None
        names = [name_of(copy).hex() for copy in (copies.sealed, copies.sealed_other) if copy]
        mine = " and ".join(key.fingerprint for key in self._held)
        why = f"it was sealed with the root key {' and '.join(names) or 'none'}, this process holds {mine}"
        raise Problem(Code.SECRET_UNOPENABLE, what=what, why=why)
