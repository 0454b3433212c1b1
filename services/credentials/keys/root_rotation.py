"""From one root key to the next, while everything goes on.

    staged     the settings of some process name it as the next one: nothing follows from that
    begun      RotateRootKey: all that the root key seals gets a second copy, under the staged one
    promoted   the first process whose settings name it as *the* root key makes it the current one
    previous   the copies under the old one stay until the next rotation takes their place

Nothing is ever without a copy that the current root key opens, so a kill at any moment costs nothing. Which
key is what stands in `root_canary`, beside a text that tells a wrong key before anything fails to open with it.
Platform secrets are found by table here; a table of secrets that is new must be listed in `keys/store/root.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import structlog

from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import PLATFORM, Entry
from services.credentials.audit.journal import Journal
from services.credentials.keys.envelope import place
from services.credentials.keys.root import RootKey
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.store import root as queries
from services.credentials.keys.store import tenant_keys
from services.credentials.keys.store.copies import Copies
from services.credentials.keys.store.root import CanaryRow, KeyPlace
from services.credentials.keys.vault import place_for_platform, place_of_tenant_key

log = structlog.get_logger(__name__)

PAGE = 50
LOOK_SECONDS = 2.0
_CANARY = b"this opens"
_PLACE_NAMES = {"platform_secrets": (), "signing_keys": ("signing key",)}
"""What precedes the name of a row in the place it was sealed for."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a change of the root key stands."""

    keeper: str
    current: str
    staged: str
    """In the settings of this process; empty: none."""
    previous: str
    done: int
    """Tenant keys with a copy under the staged one where the change has begun, else under the current one."""
    total: int


class RootRotation:
    """`async with` it, once the root key is checked: carries a change on in the background."""

    def __init__(self, roots: RootKeys, store: Store, worker: Store, journal: Journal) -> None:
        self._roots = roots
        self._store = store
        self._worker = worker
        self._journal = journal
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Whether the root key of our settings is one that this database knows. The first one ever is current."""
        await self._roots.prepare()
        async with self._store.unit_of_work(tenants=()) as work:
            await queries.hold_root(work, alone=True)
            rows = {row.fingerprint: row for row in await queries.canaries(work)}
            if not rows:
                await queries.put_canary(work, await _canary(self._roots.first, "CURRENT"))
                return
            current = _with(rows.values(), "CURRENT")
            mine = self._roots.first.fingerprint
            if current in rows and (held := self._roots.held(current)) is not None:
                self._roots.current = held
            elif mine not in rows:
                why = f"it holds the key {mine}, this database was sealed with {current}"
                raise Problem(Code.SETTINGS_INVALID, where="the root key", why=why)
            elif rows[mine].state == "PREVIOUS":
                why = f"it holds the key {mine}, which was replaced by {current}: name that one"
                raise Problem(Code.SETTINGS_INVALID, where="the root key", why=why)
            for fingerprint, row in rows.items():
                if (held := self._roots.held(fingerprint)) is not None:
                    await self._roots.unseal(Copies(row.sealed), _canary_place(held), "the canary")
        if self._roots.held(current) is None and (why := await self._unfinished()):
            raise Problem(Code.SETTINGS_INVALID, where="the root key", why=why)

    async def promote(self) -> None:
        """Where our settings name the staged key as the root key, it is the current one from now on."""
        mine = self._roots.first
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            await queries.hold_root(work, alone=True)
            rows = {row.fingerprint: row for row in await queries.canaries(work)}
            if rows[mine.fingerprint].state != "STAGED" or await self._unfinished():
                return
            old = _with(rows.values(), "CURRENT")
            await queries.drop_canaries(work, "PREVIOUS")
            await queries.move_canaries(work, "CURRENT", "PREVIOUS")
            await queries.move_canaries(work, "STAGED", "CURRENT")
            details = {"from": old, "to": mine.fingerprint}
            await self._journal.append(work, _entry("root_key.promote", details))
        self._roots.current = mine

    async def copy_to(self, fingerprint: str) -> None:
        """The staged key gets a copy of everything. Begun already, or done: nothing."""
        if fingerprint == self._roots.current.fingerprint:
            return
        staged = self._roots.staged
        if staged is None:
            why = "no settings name a next one: `root_key_next_file`, `root_key_next_kms`"
            raise Problem(Code.STATE_REFUSES, what="the root key", wanted="rotated", why=why)
        if fingerprint != staged.fingerprint:
            why = f"the staged one is {staged.fingerprint}"
            raise Problem(Code.INVALID_ARGUMENT, field="staged_fingerprint", why=why)
        async with self._store.unit_of_work(tenants=[PLATFORM]) as work:
            await queries.hold_root(work, alone=True)
            rows = {row.fingerprint: row for row in await queries.canaries(work)}
            if fingerprint in rows and rows[fingerprint].state == "STAGED":
                return
            await queries.drop_canaries(work, "STAGED")
            await queries.put_canary(work, await _canary(staged, "STAGED"))
            details = {"from": _with(rows.values(), "CURRENT"), "to": fingerprint}
            await self._journal.append(work, _entry("root_key.rotate", details))
        self._wanted.set()

    async def standing(self) -> Standing:
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            rows = await queries.canaries(work)
        current, begun = _with(rows, "CURRENT"), _with(rows, "STAGED")
        async with self._worker.across_tenants() as work:
            done, total = await queries.tenant_keys_under(work, begun or current)
        keeper = next((row.keeper for row in rows if row.fingerprint == current), "")
        staged = begun or (self._roots.staged.fingerprint if self._roots.staged else "")
        return Standing(keeper, current, staged, _with(rows, "PREVIOUS"), done, total)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="rotate the root key")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.carry_on()
            except (Problem, StoreError) as error:
                log.info("the rotation of the root key waits", why=str(error))
            except Exception:  # a task's border: it is tried again
                log.exception("the rotation of the root key failed")
            await woken(self._wanted, LOOK_SECONDS)

    async def carry_on(self) -> None:
        """Whatever has no copy under the staged key gets one, if this process holds that key."""
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            rows = await queries.canaries(work)
        self._roots.current = self._roots.held(_with(rows, "CURRENT")) or self._roots.current
        staged = self._roots.held(_with(rows, "STAGED"))
        if staged is None:
            return
        for table in queries.PLATFORM_TABLES:
            await self._copy_platform(table, staged)
        while places := await self._tenant_keys_without(staged):
            for where in places:
                await self._copy_tenant_key(where, staged)

    async def _tenant_keys_without(self, staged: RootKey) -> list[KeyPlace]:
        async with self._worker.across_tenants() as work:
            return await queries.tenant_keys_not_under(work, staged.fingerprint, PAGE)

    async def _copy_tenant_key(self, what: KeyPlace, staged: RootKey) -> None:
        async with self._store.unit_of_work(tenants=[what.tenant]) as work:
            await tenant_keys.hold_tenant_keys(work, what.tenant, alone=True)
            row = await tenant_keys.tenant_key(work, what.tenant, what.version)
            if row is not None and row.sealed is not None:
                where = place_of_tenant_key(what.tenant, what.version)
                copies = await self._copied(row.copies, where, staged)
                await queries.put_tenant_key_copies(work, what, copies)

    async def _copy_platform(self, table: str, staged: RootKey) -> None:
        async with self._store.unit_of_work(tenants=()) as work:
            for row in await queries.platform_rows_not_under(work, table, staged.fingerprint):
                where = place_for_platform(*_PLACE_NAMES[table], row.name)
                copies = await self._copied(row.copies, where, staged)
                await queries.put_platform_copies(work, table, row.name, copies)

    async def _copied(self, copies: Copies, where: bytes, staged: RootKey) -> Copies:
        """The copy under the current key as it is, and one under the staged key in the place of any other."""
        plain = await self._roots.unseal(copies, where, "a key")
        kept = copies.named(self._roots.current.fingerprint) or copies.sealed
        return Copies(kept, await staged.seal(plain, where))

    async def _unfinished(self) -> str:
        """Why the root key of our settings, if it is the staged one, cannot be the current one yet."""
        mine = self._roots.first.fingerprint
        async with self._store.unit_of_work(tenants=()) as work:
            rows = await queries.canaries(work)
            if _with(rows, "STAGED") != mine:
                return ""
            left = [
                await queries.platform_rows_not_under(work, table, mine) for table in queries.PLATFORM_TABLES
            ]
        async with self._worker.across_tenants() as work:
            done, total = await queries.tenant_keys_under(work, mine)
        if done == total and not any(left):
            return ""
        return (
            f"it holds the key {mine}, under which {done} of {total} keys of tenants are so far:"
            f" let a process with {_with(rows, 'CURRENT')} finish the rotation first"
        )


async def _canary(key: RootKey, state: str) -> CanaryRow:
    sealed = await key.seal(_CANARY, _canary_place(key))
    await key.unseal(sealed, _canary_place(key))
    return CanaryRow(key.fingerprint, sealed, key.keeper, state)


def _canary_place(key: RootKey) -> bytes:
    return place("canary", key.fingerprint)


def _with(rows: Iterable[CanaryRow], state: str) -> str:
    return next((row.fingerprint for row in rows if row.state == state), "")


def _entry(action: str, details: dict[str, str]) -> Entry:
    return Entry(tenant=PLATFORM, action=action, resource="rootKey", details=details)
