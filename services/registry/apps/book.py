"""Making, changing and removing apps, and agreeing that an account is a tenant's.

An app is many tenants': whatever would break one of their connections is refused, by its name.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace

import structlog

from foundation.errors import Code, Problem
from foundation.identity.names import new_id
from services.registry.apps import store
from services.registry.apps.app import App, routed
from services.registry.apps.wanted import SETTABLE, check, merged, settable
from services.registry.connections import accounts
from services.registry.connections import store as connections
from services.registry.connections.book import ConnectionBook, digest_of, endpoint
from services.registry.connections.connection import Connection, State
from services.registry.connections.grants import Wish, wishes_for
from services.registry.connections.wanted import check as check_connection
from services.registry.etags import changed_since, demand_same
from services.registry.ground import Ground
from services.registry.recording import Change
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1.apps_pb2 import App as Message

log = structlog.get_logger(__name__)

NAMED = 10
"""Connections that a refusal names."""


class AppBook:
    def __init__(self, on: Ground, book: ConnectionBook) -> None:
        self._own, self._worker, self._host = on.own, on.worker, on.host
        self._picture, self._recorder, self._clock = on.picture, on.recorder, on.clock
        self._book, self._grants = book, book.grants

    async def create(self, id_: str, given: Message, *, request_id: str) -> App:
        """The same request again answers the same app."""
        new_id(id_, "app_id")
        wanted = settable(given)
        digest = digest_of(id_, wanted.SerializeToString(deterministic=True))
        if (there := await self._requested(request_id, digest)) is not None:
            return there
        manifest = self._manifest(wanted)
        check(wanted, manifest)
        app = App(
            id=id_,
            instance=secrets.token_hex(4),
            content=wanted,
            create_time=self._clock.now(),
            endpoints={webhook.name: endpoint() for webhook in routed(manifest)},
        )
        fields = [name for name in SETTABLE if getattr(wanted, name)]
        async with self._recorder.making(Change(action="app.create", resource=app.name, fields=fields)):
            # Grants first: an endpoint without its secret would refuse what its provider sends.
            for wish in wishes(app, manifest):
                await self._grants.give(wish)
            async with self._own.unit_of_work(tenants=()) as work:
                made = await store.insert(work, app, request_id, digest)
            if not made and (there := await self._requested(request_id, digest)) is None:
                raise Problem(Code.ALREADY_EXISTS, what=app.name)
        self._picture.notice()
        return await self.get(id_)

    async def get(self, id_: str) -> App:
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            found = await store.get(work, id_)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"app {id_}")
        return found

    async def list(self, after: str, limit: int) -> list[App]:
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            return await store.listed(work, after, limit)

    async def update(self, id_: str, given: Message, mask: Sequence[str], *, etag: str) -> App:
        present = await self.get(id_)
        wanted = merged(present.content, given, mask)
        demand_same(present, etag)
        if wanted == present.content:
            return present
        manifest = self._manifest(wanted)
        check(wanted, manifest)
        endpoints = {one.name: present.endpoints.get(one.name) or endpoint() for one in routed(manifest)}
        changed = replace(present, content=wanted, endpoints=endpoints)
        await self._demand_fitting(changed)
        fields = [name for name in mask if getattr(wanted, name) != getattr(present.content, name)]
        async with self._recorder.making(Change(action="app.update", resource=present.name, fields=fields)):
            for wish in wishes(changed, manifest):
                await self._grants.give(wish)
            async with self._own.unit_of_work(tenants=()) as work:
                if not await store.update(work, changed):
                    raise changed_since(present)
        self._picture.notice()
        if "credentials" in fields:
            await self._end_others(changed)
        return await self.get(id_)

    async def delete(self, id_: str, etag: str) -> None:
        """None: nothing to do."""
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            present = await store.get(work, id_)
        if present is None:
            return
        if etag:
            demand_same(present, etag)
        await self._demand_unused(present)
        async with (
            self._recorder.making(Change(action="app.delete", resource=present.name)),
            self._worker.across_tenants() as work,
        ):
            locked = await store.locked(work, id_)
            if locked is None:
                return
            if etag:
                demand_same(locked, etag)
            _refuse_used(locked, await connections.of_app(work, present.name, NAMED + 1))
            await store.delete(work, id_)
            # Last: what cannot be taken back now is taken back when it is asked again.
            await self._grants.end_of_app(locked.name, locked.content.owner)
        self._picture.notice()

    async def approve(self, tenant: str, id_: str, account_key: str) -> Connection:
        """The account is that connection's, by the word of who runs the platform."""
        connection = await self._book.get(tenant, id_)
        if connection.state is State.DELETING:
            why = "it is being deleted"
            raise Problem(Code.STATE_REFUSES, what=connection.name, wanted="given an account", why=why)
        app = connection.wanted.app
        if not app or account_key not in {one.key for one in connection.wanted.account_keys}:
            what = f"account key {account_key[:100]!r} that {connection.name} names"
            raise Problem(Code.NOT_FOUND, what=what)
        details = {"app": app, "account_key": account_key}
        change = Change(action="app.approve_account_key", resource=connection.name, details=details)
        async with (
            self._recorder.making(change),
            self._own.unit_of_work(tenants=[tenant]) as work,
        ):
            if not await accounts.hold(work, connection):
                raise changed_since(connection)
            if not await accounts.approve(work, connection, account_key):
                what = f"connection with the account {account_key[:100]!r} at {app}"
                raise Problem(Code.ALREADY_EXISTS, what=what)
            await connections.changed(work)
        self._picture.notice()
        return await self._book.get(tenant, id_)

    def _manifest(self, wanted: Message) -> Manifest:
        plugin = wanted.plugin.removeprefix("plugins/")
        manifest = self._host.manifest(plugin, "") if wanted.plugin.startswith("plugins/") else None
        if manifest is None:
            why = f"there is no plugin {wanted.plugin[:100]!r}; `tieline plugin list` shows what there is"
            raise Problem(Code.INVALID_ARGUMENT, field="app.plugin", why=why)
        return manifest

    async def _requested(self, request_id: str, digest: bytes) -> App | None:
        """What an earlier request made; the problem ALREADY_EXISTS if it was about something else."""
        if not request_id:
            return None
        async with self._own.unit_of_work(tenants=(), read_only=True) as work:
            found = await store.by_request(work, request_id)
        if found is not None and found[1] != digest:
            raise Problem(Code.ALREADY_EXISTS, what=f"request {request_id[:64]} with other content")
        return None if found is None else found[0]

    async def _demand_fitting(self, app: App) -> None:
        """Its connections have to fit it as it will be."""
        async with self._worker.across_tenants() as work:
            users = await connections.of_app(work, app.name, None)
        for connection in users:
            manifest = self._host.manifest(connection.plugin, connection.wanted.version_range)
            if manifest is None or connection.wanted.app != app.name:
                continue
            try:
                check_connection(connection.wanted, manifest, connection.tenant, app)
            except Problem as problem:
                why = f"{connection.name} would not fit any more: {problem.sentence}"
                raise Problem(Code.INVALID_ARGUMENT, field="app", why=why) from None

    async def _demand_unused(self, app: App) -> None:
        async with self._worker.across_tenants() as work:
            _refuse_used(app, await connections.of_app(work, app.name, NAMED + 1))

    async def _end_others(self, app: App) -> None:
        try:
            await self._grants.end_of_app(app.name, app.content.owner, app.content.credentials)
        except Problem as away:
            log.warning("grants that an app no longer wants are still there", app=app.name, why=away.sentence)


def wishes(app: App, manifest: Manifest) -> Iterator[Wish]:
    """One for each use of each credential."""
    return wishes_for(app.name, app.content.credentials, app.content.settings, manifest)


def _refuse_used(app: App, users: Sequence[Connection]) -> None:
    if users:
        more = " and others" if len(users) > NAMED else ""
        why = f"it is used by {', '.join(one.name for one in users[:NAMED])}{more}"
        raise Problem(Code.STATE_REFUSES, what=app.name, wanted="deleted", why=why)
