"""What time brings: credentials end, people are warned, values are replaced, what is over is destroyed.

Any replica may find what is due; the row is locked and looked at again before anything is done, so it is done
once. What cannot be done now is due again at the next look.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.notices import outbox
from foundation.store.errors import StoreError
from foundation.store.unit_of_work import Store
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.credential import renewing, states
from services.credentials.credential import store as queries
from services.credentials.credential.book import BY_THE_CLOCK, Book, Ref
from services.credentials.credential.store import CredentialRow, VersionRow
from services.credentials.leases import store as leases
from services.credentials.notices import telling

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
AT_ONCE = 200
WARNINGS = (30, 7, 1)
"""Days before its end at which people are told of a credential that nothing renews."""
AGAIN = timedelta(minutes=1)
"""How long after a renewal that failed the next one is tried."""
_OVER = frozenset({"EXPIRED", "REVOKED", "REAUTHORISATION_REQUIRED"})


class Keeper:
    """`async with` it: looks after credentials while inside."""

    def __init__(self, store: Store, worker: Store, book: Book, journal: Journal, clock: Clock) -> None:
        self._store = store
        self._worker = worker
        self._book = book
        self._journal = journal
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="keep credentials")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except (Problem, StoreError) as error:
                log.debug("credentials are looked after later", error=str(error))
            except Exception:  # a task's border: the next look must come
                log.exception("credentials are looked after later")
            await woken(self.wake, LOOK_SECONDS)

    async def look(self) -> None:
        """All that is due now, once."""
        now = self._clock.now()
        async with self._worker.across_tenants() as work:
            due = await queries.due(work, now, now + timedelta(days=WARNINGS[0]), AT_ONCE)
            outlived = await queries.outlived(work, now, AT_ONCE)
        for found in due:
            await self._each(Ref(found.tenant, found.id))
        for version in outlived:
            await self._destroy(version)

    async def _each(self, ref: Ref) -> None:
        try:
            if await self._renews_now(ref):
                await self._renew(ref)
            await self._judge(ref)
        except Problem as problem:  # one credential's trouble is not the others'
            log.info("a credential could not be looked after", credential=str(ref), why=problem.sentence)

    async def _renew(self, ref: Ref) -> None:
        try:
            await self._book.rotate(ref, 0, BY_THE_CLOCK)
        except Problem as problem:
            log.info("a credential was not renewed", credential=str(ref), why=problem.sentence)
            async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
                await queries.postpone_renewal(work, ref.tenant, ref.id, self._clock.now() + AGAIN)

    async def _renews_now(self, ref: Ref) -> bool:
        row = await self._book.read(ref)
        return row.state not in _OVER and row.renews_at is not None and row.renews_at <= self._clock.now()

    async def _judge(self, ref: Ref) -> None:
        """Whether it has ended, or will soon with nothing to renew it."""
        now = self._clock.now()
        async with self._store.unit_of_work(tenants=[ref.tenant]) as work:
            row = await queries.credential(work, ref.tenant, ref.id, locked=True)
            if row is None or row.state in _OVER or row.expires_at is None:
                return
            if row.expires_at <= now:
                if _refreshes(row):
                    return  # renewal decides how that ends
                await leases.revoke_of_credential(work, row.tenant, row.id)
                await states.enter(work, row, "EXPIRED", now=now)
                entry = Entry(tenant=row.tenant, action="credential.expire", resource=row.name)
                await self._journal.append(work, entry)
            elif not _refreshes(row) and (days := _warning(row, row.expires_at - now)):
                await queries.note_warning(work, row, days)
                await outbox.add(work, telling.ends_soon(row, row.expires_at, days, now))
                if row.state in ("UNCHECKED", "VALID"):
                    await states.enter(work, row, "EXPIRING", now=now)

    async def _destroy(self, version: VersionRow) -> None:
        """Its overlap, or the session's life, is over: its data key goes, and whoever holds it hears of that."""
        async with self._store.unit_of_work(tenants=[version.tenant]) as work:
            row = await queries.credential(work, version.tenant, version.credential, locked=True)
            if row is None or row.current_version == version.version:
                return
            number = version.version
            if version.made_from is None:
                await queries.destroy_versions(work, version.tenant, version.credential, number)
                await leases.revoke_of_credential(work, version.tenant, version.credential, number)
                name = f"{row.name}/versions/{number}"
                entry = Entry(tenant=row.tenant, action="credential.retire", resource=name)
                await self._journal.append(work, entry)
            else:
                await queries.forget_session(work, version)


def _refreshes(row: CredentialRow) -> bool:
    """Whether renewal gives its holders something newer before it ends."""
    return row.kind == "OAUTH2_AUTHORIZATION_CODE" and renewing.of(row).automatic


def _warning(row: CredentialRow, left: timedelta) -> int | None:
    """The warning that is due now and was not given yet."""
    reached = [days for days in WARNINGS if left <= timedelta(days=days)]
    if not reached or (row.warned_days is not None and row.warned_days <= reached[-1]):
        return None
    return reached[-1]
