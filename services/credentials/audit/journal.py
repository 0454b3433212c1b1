"""Writes the audit. A record is durable with the transaction it stands in: no change without its record."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock
from foundation.errors import Code, Problem
from services.credentials.audit import store as queries
from services.credentials.audit.chain import Head, Record, fits, follow, mac_of_head
from services.credentials.audit.entry import Entry
from services.credentials.audit.store import HeadRow
from services.credentials.keys.vault import Vault


class Journal:
    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock
        self._key: bytes | None = None

    async def load(self) -> None:
        """The key that records are signed with."""
        self._key = await self._vault.platform_key("audit")

    @property
    def key(self) -> bytes:
        if self._key is None:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="vault", why="its keys are not loaded yet")
        return self._key

    def trusted(self, tenant: str, stored: HeadRow) -> Head:
        """The end of a chain, if it is as we wrote it."""
        if not fits(stored.mac, mac_of_head(self.key, tenant, stored.head)):
            why = "the end of a chain is not as it was written; `tieline audit verify` says more"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the audit", why=why)
        return stored.head

    async def append(self, work: AsyncConnection, *entries: Entry) -> list[Record]:
        """In the order given, each to its tenant's chain. Last in a transaction: chains are held to its end."""
        key = self.key
        written: list[Record] = []
        # Every transaction takes chains in the same order, so that no two wait for each other.
        for tenant, of_tenant in groupby(sorted(entries, key=lambda entry: entry.tenant), lambda e: e.tenant):
            written += await self._append(work, tenant, list(of_tenant), key)
        place_of = {id(record.entry): record for record in written}
        return [place_of[id(entry)] for entry in entries]

    async def _append(
        self, work: AsyncConnection, tenant: str, entries: Sequence[Entry], key: bytes
    ) -> list[Record]:
        # A chain whose end was touched is not continued: a new record would make it look whole again.
        head = self.trusted(tenant, await queries.lock_head(work, tenant, mac_of_head(key, tenant, Head())))
        records, now = list[Record](), self._clock.now()
        for entry in entries:
            record = follow(head, entry, now, key)
            records.append(record)
            head = Head(record.sequence, record.hash)
        await queries.append(work, records, mac_of_head(key, tenant, head))
        return records
