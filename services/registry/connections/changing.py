"""Changing what is wanted: an update, or the return to an old revision. Each is a new revision, and nothing else.

Of two changes made from the same etag one wins, by the statement that writes; the other is told and has changed
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from foundation.errors import Code, Problem
from services.registry.connections import store
from services.registry.connections.book import ConnectionBook, demand, digest_of, endpoint
from services.registry.connections.connection import Application, Connection, Revision
from services.registry.connections.drafts import Draft, Drafted
from services.registry.connections.grants import new_wishes
from services.registry.connections.wanted import changed_fields, merged, webhooks_of
from services.registry.etags import changed_since
from services.registry.recording import Change
from tieline.registry.v1 import connections_pb2 as pb


class Changing:
    def __init__(self, book: ConnectionBook) -> None:
        self._book = book

    async def update(
        self,
        tenant: str,
        id_: str,
        given: pb.Connection,
        mask: Sequence[str],
        *,
        etag: str,
        request_id: str,
        validate_only: bool,
        author: str,
        action: str = "connection.update",
        settle: bool = True,
    ) -> Connection:
        digest = digest_of("update", id_, "\n".join(mask), given.SerializeToString(deterministic=True))
        present, answered = await self._found(tenant, id_, etag, request_id, digest)
        if answered:
            return present
        wanted = merged(present.wanted, given, mask)
        demand(present, etag)
        if wanted == present.wanted:
            return present
        version = present.settings_version
        if "settings" in mask and wanted.settings != present.wanted.settings:
            version = self._book.drafts.manifest(wanted).version
        drafted = await self._book.drafts.of(present, Draft(wanted, version, author))
        if validate_only:
            return _drawn(present, drafted)
        return await self._write(
            present, drafted, etag, request_id=request_id, digest=digest, action=action, settle=settle
        )

    async def go_back(
        self, tenant: str, id_: str, number: int, *, etag: str, request_id: str, author: str
    ) -> Connection:
        """A new revision with exactly the content of that one."""
        digest = digest_of("rollback", id_, etag, str(number))
        present, answered = await self._found(tenant, id_, etag, request_id, digest)
        if answered:
            return present
        demand(present, etag)
        async with self._book.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            known = 0 < number <= present.revision
            old = await store.revision(work, tenant, id_, number) if known else None
        if old is None:
            raise Problem(Code.NOT_FOUND, what=f"revision {number} of {present.name}")
        draft = Draft(old.wanted, old.settings_version, author, rollback_of=number)
        drafted = await self._book.drafts.of(present, draft)
        return await self._write(
            present, drafted, etag, request_id=request_id, digest=digest, action="connection.rollback"
        )

    async def _found(
        self, tenant: str, id_: str, etag: str, request_id: str, digest: bytes
    ) -> tuple[Connection, bool]:
        """It as it is, and whether this very request made it so.

        That is asked once more where the etag is not as given: the request's other copy may have been at it meanwhile.
        """
        answered = await self._book.was_answered(tenant, request_id, digest)
        present = await self._book.get(tenant, id_)
        if not answered and present.etag != etag:
            answered = await self._book.was_answered(tenant, request_id, digest)
        return present, answered

    async def _write(
        self,
        present: Connection,
        drafted: Drafted,
        etag: str,
        *,
        request_id: str,
        digest: bytes,
        action: str,
        settle: bool = True,
    ) -> Connection:
        book, now = self._book, self._book.clock.now()
        drawn = _drawn(present, drafted)
        new = revisions(present, drafted.drafts, now)
        fields = changed_fields(present.wanted, drawn.wanted)
        details = {"revision": str(drawn.revision)}
        async with book.recorder.making(
            Change(action=action, resource=present.name, fields=fields, details=details)
        ):
            for wish in new_wishes(drawn, drafted.manifest, present.wanted):
                await book.grants.give(wish)
            async with book.own.unit_of_work(tenants=[present.tenant]) as work:
                fresh = not request_id or await store.requested(work, present, request_id, digest, now)
                if fresh and not await store.change(work, drawn, new, etag, now):
                    raise changed_since(present)
        if not fresh and not await book.was_answered(present.tenant, request_id, digest):
            raise changed_since(present)
        return await book.told(present, settle=settle)


def revisions(present: Connection, drafts: Sequence[Draft], now: datetime) -> list[Revision]:
    """Only the last of them is ever applied."""
    new: list[Revision] = []
    for place, draft in enumerate(drafts):
        new.append(
            Revision(
                number=present.revision + 1 + place,
                wanted=draft.wanted,
                settings_version=draft.settings_version,
                author=draft.author,
                create_time=now,
                rollback_of=draft.rollback_of,
                migrated_from=present.revision + place if draft.migrated else 0,
            )
        )
    return new


def _drawn(present: Connection, drafted: Drafted) -> Connection:
    """As it will be: webhooks that stay keep their endpoint, new ones get one, those that leave stop."""
    last = drafted.last
    return replace(
        present,
        wanted=last.wanted,
        settings_version=last.settings_version,
        revision=present.revision + len(drafted.drafts),
        application=Application.PENDING,
        application_failure=None,
        endpoints={
            webhook: present.endpoints.get(webhook) or endpoint()
            for webhook in webhooks_of(last.wanted, drafted.manifest)
        },
    )
