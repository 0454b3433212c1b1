"""Making and reading connections, and what every change of one goes through."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import new_id
from foundation.store.unit_of_work import Store
from services.registry.connections import store
from services.registry.connections.applying import Applier
from services.registry.connections.connection import Application, Connection, Revision, State
from services.registry.connections.drafts import Draft, Drafts
from services.registry.connections.grants import Grants, wishes
from services.registry.connections.picture import Picture
from services.registry.connections.wanted import settable, webhooks_of
from services.registry.etags import demand_named, demand_same
from services.registry.recording import Change, Recorder
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import connections_pb2 as pb

FlagsOf = Callable[[str, str], Awaitable[Sequence[str]]]
"""Ids of the flags that are on for a plugin and a connection."""

APPLY_SECONDS = 3.0
"""How long a change waits to be applied before it answers that it is pending."""
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.2

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class ConnectionBook:
    def __init__(
        self,
        *,
        own: Store,
        drafts: Drafts,
        picture: Picture,
        applier: Applier,
        grants: Grants,
        flags: FlagsOf,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self.own, self.drafts, self.grants = own, drafts, grants
        self.recorder, self.clock = recorder, clock
        self._picture, self._applier, self._flags = picture, applier, flags

    async def create(
        self,
        tenant: str,
        id_: str,
        given: pb.Connection,
        *,
        request_id: str,
        validate_only: bool,
        author: str,
        action: str = "connection.create",
        settle: bool = True,
    ) -> Connection:
        """The same request again answers the same connection; the same name with the same content does too."""
        new_id(id_, "connection_id")
        wanted = settable(given)
        manifest = self.drafts.manifest(wanted)
        connection = self._new(tenant, id_, wanted, manifest)
        if there := await self._present(connection, request_id):
            return there
        wanted.flags[:] = await self._flags(connection.plugin, connection.name)
        await self.drafts.of(connection, Draft(wanted, manifest.version, author))
        if validate_only:
            return connection
        fields = [field.name for field, _ in connection.wanted.ListFields()]
        change = Change(action=action, resource=connection.name, fields=fields)
        async with self.recorder.making(change):
            # Grants before the row: a connection without its grant would look as if it worked.
            for wish in wishes(connection, manifest):
                await self.grants.give(wish)
            async with self.own.unit_of_work(tenants=[tenant]) as work:
                made = await store.insert(work, connection, request_id=request_id, author=author)
        if not made and (there := await self._present(connection, request_id)):
            return there
        return await self.told(connection, settle=settle)

    async def get(self, tenant: str, id_: str) -> Connection:
        async with self.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            found = await store.get(work, tenant, id_)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"connection {id_} in tenant {tenant}")
        return found

    async def list(self, tenant: str, *, after: str, plugin: str, limit: int) -> list[Connection]:
        async with self.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await store.listed(work, tenant, after=after, plugin=plugin, limit=limit)

    async def revisions(self, tenant: str, id_: str, *, before: int, limit: int) -> Sequence[Revision]:
        """Newest first."""
        await self.get(tenant, id_)
        async with self.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await store.revisions(work, tenant, id_, before=before, limit=limit)

    async def told(self, connection: Connection, *, settle: bool = True) -> Connection:
        """It was changed: whoever works on it hears of it, and it is answered as it then is."""
        self._applier.notice()
        self._picture.notice()
        if settle:
            settled = await self._settled(connection)
            if settled.application is Application.APPLIED:
                await self._seen(connection.tenant)
            return settled
        return await self.get(connection.tenant, connection.id)

    async def was_answered(self, tenant: str, request_id: str, digest: bytes) -> bool:
        """Whether that request was made before; the problem where its id stands for another."""
        if not request_id:
            return False
        async with self.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            known = await store.answered(work, tenant, request_id)
        if known is not None and known != digest:
            raise Problem(Code.ALREADY_EXISTS, what=f"request {request_id[:64]} with other content")
        return known is not None

    def _new(self, tenant: str, id_: str, wanted: pb.Connection, manifest: Manifest) -> Connection:
        now = self.clock.now()
        return Connection(
            tenant=tenant,
            id=id_,
            instance=secrets.token_hex(16),
            wanted=wanted,
            settings_version=manifest.version,
            revision=1,
            applied_revision=0,
            state=State.PENDING,
            state_time=now,
            application=Application.PENDING,
            application_failure=None,
            resolved_version="",
            endpoints={webhook: endpoint() for webhook in webhooks_of(wanted, manifest)},
            create_time=now,
            update_time=now,
        )

    async def _present(self, new: Connection, request_id: str) -> Connection | None:
        """What an earlier request made; the problem ALREADY_EXISTS if that was something else."""
        async with self.own.unit_of_work(tenants=[new.tenant], read_only=True) as work:
            found = await store.by_request(work, new.tenant, request_id) if request_id else None
            found = found or await store.get(work, new.tenant, new.id)
        if found is not None and found.state is State.DELETING:
            why = "the one before is still being deleted; a moment later its id is free"
            raise Problem(Code.STATE_REFUSES, what=found.name, wanted="created", why=why)
        if found is not None and (found.id, _asked(found)) != (new.id, _asked(new)):
            raise Problem(Code.ALREADY_EXISTS, what=f"connection {found.id} with other content")
        return found

    async def _seen(self, tenant: str) -> None:
        """What is answered as serving does serve here: a call right after the answer finds it."""
        async with self.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            generation = await store.generation(work)
        await self._picture.reach(generation)

    async def _settled(self, connection: Connection) -> Connection:
        """As it is once its revision is applied or refused, or when waiting longer would be impolite."""
        pause = _FIRST_LOOK
        try:
            async with asyncio.timeout(APPLY_SECONDS):
                while True:
                    found = await self.get(connection.tenant, connection.id)
                    rests = found.state in (State.PAUSED, State.DELETING)
                    if rests or found.application in (Application.APPLIED, Application.FAILED):
                        return found
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, _LAST_LOOK)
        except TimeoutError:
            return await self.get(connection.tenant, connection.id)


def _asked(connection: Connection) -> pb.Connection:
    """What a caller asked for; flags are the platform's."""
    asked = pb.Connection()
    asked.CopyFrom(connection.wanted)
    del asked.flags[:]
    return asked


def demand(connection: Connection, etag: str) -> Connection:
    """It, if nobody changed it since that etag and it is not being ended."""
    demand_named(etag)
    if connection.state is State.DELETING:
        why = "it is being deleted"
        raise Problem(Code.STATE_REFUSES, what=connection.name, wanted="changed", why=why)
    demand_same(connection, etag)
    return connection


def digest_of(*parts: bytes | str) -> bytes:
    """What a request is about, so that its id never stands for two things."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.digest()


def endpoint() -> str:
    """The last part of a URL: 130 random bits. Knowing it proves nothing."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(26))
