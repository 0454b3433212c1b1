"""The vault: keys of tenants, and values sealed under them. Nothing here knows who asks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.credentials.keys.envelope import (
    KEY_BYTES,
    Key,
    Sealed,
    Unopenable,
    place,
    rewrap,
    seal_value,
    unseal_value,
    versioned,
)
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.store import root, tenant_keys
from services.credentials.keys.store.copies import Copies


@dataclass(frozen=True, slots=True)
class Holding:
    """Which secret: one version of one credential of one tenant. Nothing opens as another one."""

    tenant: str
    credential: str
    version: int

    @property
    def where(self) -> bytes:
        return place("value", self.tenant, self.credential, self.version)

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/credentials/{self.credential} version {self.version}"


@dataclass(frozen=True, slots=True)
class Rewrapping:
    """Versions of one tenant's key, good for as long as the transaction that they were read in."""

    keys: Mapping[int, Key]

    def rewrap(self, what: Holding, wrapped_key: bytes, old: int, new: int) -> bytes:
        """A data key under another version of its tenant's key; its value is not needed for that."""
        try:
            return rewrap(self.keys[old], self.keys[new], wrapped_key, what.where)
        except Unopenable as error:
            raise Problem(Code.SECRET_UNOPENABLE, what=str(what), why=str(error)) from None


class Vault:
    def __init__(self, roots: RootKeys, store: Store) -> None:
        self._roots = roots
        self._store = store
        self._tenant_keys: dict[tuple[str, int], Key] = {}

    # what the platform keeps for itself

    async def seal_for_platform(self, work: AsyncConnection, plain: bytes, *name: str) -> bytes:
        return await self._seal_with_root(work, plain, place_for_platform(*name))

    async def open_for_platform(self, copies: Copies, *name: str) -> bytes:
        return await self._roots.unseal(copies, place_for_platform(*name), "a secret of the platform")

    async def platform_key(self, name: str) -> bytes:
        """A random key that the platform keeps for itself; made when it is first asked for."""
        async with self._store.unit_of_work(tenants=()) as work:
            copies = await root.platform_secret(work, name)
            if copies is None:
                made = await self.seal_for_platform(work, os.urandom(KEY_BYTES), name)
                await root.add_platform_secret(work, name, made)
                copies = await root.platform_secret(work, name) or Copies(made)
        return await self.open_for_platform(copies, name)

    # keys of tenants

    async def give_key(self, work: AsyncConnection, tenant: str, version: int = 1) -> None:
        """A new version of a tenant's key, the first one unless said otherwise."""
        sealed = await self._seal_with_root(work, Key.new().raw, place_of_tenant_key(tenant, version))
        await tenant_keys.add_tenant_key(work, tenant, version, sealed)

    async def destroy_keys(self, work: AsyncConnection, tenant: str, before: int | None = None) -> None:
        """Every version, or every one below `before`. What they wrapped is gone with them."""
        await tenant_keys.hold_tenant_keys(work, tenant, alone=True)
        await tenant_keys.destroy_tenant_keys(work, tenant, before)
        self.forget(tenant)

    def forget(self, tenant: str) -> None:
        for known in [known for known in self._tenant_keys if known[0] == tenant]:
            del self._tenant_keys[known]

    def keep_only(self, tenants: Collection[str]) -> None:
        """Forget the keys of every other tenant: they are deleted, perhaps by another replica."""
        for tenant in {known[0] for known in self._tenant_keys}.difference(tenants):
            self.forget(tenant)

    # values

    async def seal(self, work: AsyncConnection, what: Holding, value: bytes) -> tuple[Sealed, int]:
        """The value sealed, and the version of the tenant's key that it is sealed under."""
        await tenant_keys.hold_tenant_keys(work, what.tenant, alone=False)
        version, key = await self._tenant_key(work, what.tenant, None)
        return seal_value(key, value, what.where), version

    async def open(self, work: AsyncConnection, what: Holding, sealed: Sealed, key_version: int) -> bytes:
        _, key = await self._tenant_key(work, what.tenant, key_version)
        try:
            return unseal_value(key, sealed, what.where)
        except Unopenable as error:
            raise Problem(Code.SECRET_UNOPENABLE, what=str(what), why=str(error)) from None

    async def rewrapping(self, work: AsyncConnection, tenant: str, versions: Collection[int]) -> Rewrapping:
        """These versions of a tenant's key, to wrap data keys of this transaction anew."""
        return Rewrapping(dict([await self._tenant_key(work, tenant, version) for version in versions]))

    async def _tenant_key(self, work: AsyncConnection, tenant: str, version: int | None) -> tuple[int, Key]:
        """The only way to a tenant's key, and it leads through its row, in the transaction that wants it.

        What we remember saves the root key's work and gives no right: a key that was destroyed by whatever
        replica opens nothing here either, from the moment of that commit.
        """
        found = await tenant_keys.tenant_key(work, tenant, version)
        if found is None or found.sealed is None:
            self.forget(tenant)
            raise Problem(Code.NOT_FOUND, what=f"key of tenant {tenant}")
        known = (tenant, found.version)
        if known not in self._tenant_keys:
            where = place_of_tenant_key(tenant, found.version)
            raw = await self._roots.unseal(found.copies, where, f"the key of tenant {tenant}")
            self._tenant_keys[known] = Key(raw, versioned(found.version))
        return found.version, self._tenant_keys[known]

    async def _seal_with_root(self, work: AsyncConnection, plain: bytes, where: bytes) -> bytes:
        """With the root key that is current as this transaction sees it, and stays so until it ends."""
        await root.hold_root(work, alone=False)
        current = [row.fingerprint for row in await root.canaries(work) if row.state == "CURRENT"]
        key = self._roots.held(current[0]) if current else None
        if key is None:
            mine = self._roots.current.fingerprint
            why = (
                f"{', '.join(current) or 'none'} is current now, and this process holds {mine}: start it anew"
            )
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the root key", why=why)
        return await key.seal(plain, where)


def place_for_platform(*name: str) -> bytes:
    return place("platform", *name)


def place_of_tenant_key(tenant: str, version: int) -> bytes:
    return place("tenant key", tenant, version)
