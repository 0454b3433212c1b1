"""Making and reading connections."""

from __future__ import annotations

import asyncio
import secrets

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import new_id
from foundation.store.unit_of_work import Store
from services.registry.broker.broker import Broker
from services.registry.connections import store
from services.registry.connections.applying import Applier
from services.registry.connections.connection import Application, Connection, State
from services.registry.connections.grants import Grants, wishes
from services.registry.connections.picture import Picture
from services.registry.connections.wanted import check, settable, webhooks_of
from services.registry.host.host import Host
from services.registry.recording import Change, Recorder
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import connections_pb2 as pb

APPLY_SECONDS = 3.0
"""How long a creation waits to be applied before it answers that it is pending."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class ConnectionBook:
    def __init__(
        self,
        *,
        own: Store,
        host: Host,
        broker: Broker,
        picture: Picture,
        applier: Applier,
        grants: Grants,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._own, self._host, self._broker = own, host, broker
        self._picture, self._applier, self._grants = picture, applier, grants
        self._recorder, self._clock = recorder, clock

    async def create(
        self,
        tenant: str,
        id_: str,
        given: pb.Connection,
        *,
        request_id: str,
        validate_only: bool,
        author: str,
    ) -> Connection:
        """The same request again answers the same connection; the same name with the same content does too."""
        new_id(id_, "connection_id")
        wanted = settable(given)
        manifest = self._manifest(wanted)
        check(wanted, manifest, tenant)
        connection = self._new(tenant, id_, wanted, manifest)
        if there := await self._present(connection, request_id):
            return there
        await self._ask_plugin(connection)
        if validate_only:
            return connection
        fields = [field.name for field, _ in connection.wanted.ListFields()]
        change = Change(action="connection.create", resource=connection.name, fields=fields)
        async with self._recorder.making(change):
            # Grants before the row: a connection without its grant would look as if it worked.
            for wish in wishes(connection, manifest):
                await self._grants.give(wish)
            async with self._own.unit_of_work(tenants=[tenant]) as work:
                made = await store.insert(work, connection, request_id=request_id, author=author)
        if not made and (there := await self._present(connection, request_id)):
            return there
        self._applier.notice()
        self._picture.notice()
        return await self._settled(connection)

    async def get(self, tenant: str, id_: str) -> Connection:
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            found = await store.get(work, tenant, id_)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"connection {id_} in tenant {tenant}")
        return found

    async def list(self, tenant: str, *, after: str, plugin: str, limit: int) -> list[Connection]:
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await store.listed(work, tenant, after=after, plugin=plugin, limit=limit)

    def _manifest(self, wanted: pb.Connection) -> Manifest:
        plugin = wanted.plugin.removeprefix("plugins/")
        known = wanted.plugin.startswith("plugins/") and self._host.catalogue.content.versions(plugin)
        if not known:
            why = f"there is no plugin {wanted.plugin[:100]!r}; `tieline plugin list` shows what there is"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.plugin", why=why)
        manifest = self._host.manifest(plugin, wanted.version_range)
        if manifest is None:
            there = ", ".join(str(one.version) for one in known)
            why = f"no version that may be chosen fits; there is {there}"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.version_range", why=why)
        return manifest

    def _new(self, tenant: str, id_: str, wanted: pb.Connection, manifest: Manifest) -> Connection:
        now = self._clock.now()
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
            endpoints={webhook: _endpoint() for webhook in webhooks_of(wanted, manifest)},
            create_time=now,
            update_time=now,
        )

    async def _present(self, new: Connection, request_id: str) -> Connection | None:
        """What an earlier request made; the problem ALREADY_EXISTS if that was something else."""
        async with self._own.unit_of_work(tenants=[new.tenant], read_only=True) as work:
            found = await store.by_request(work, new.tenant, request_id) if request_id else None
            found = found or await store.get(work, new.tenant, new.id)
        if found is not None and (found.id, found.wanted) != (new.id, new.wanted):
            raise Problem(Code.ALREADY_EXISTS, what=f"connection {found.id} with other content")
        return found

    async def _ask_plugin(self, connection: Connection) -> None:
        """What the plugin says of the settings, if it can be asked now; else it is asked when it is back."""
        failure = await self._broker.initialize(connection.served(1), validate_only=True)
        if failure is not None and failure.kind == FailureKind.FAILURE_KIND_INVALID_CONFIG:
            raise Problem(Code.INVALID_ARGUMENT, field="connection.settings", why=failure.message)

    async def _settled(self, connection: Connection) -> Connection:
        """As it is once its revision is applied or refused, or when waiting longer would be impolite."""
        try:
            async with asyncio.timeout(APPLY_SECONDS):
                while True:
                    found = await self.get(connection.tenant, connection.id)
                    if found.application is not Application.PENDING:
                        return found
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return await self.get(connection.tenant, connection.id)


def _endpoint() -> str:
    """The last part of a URL: 130 random bits. Knowing it proves nothing."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(26))
