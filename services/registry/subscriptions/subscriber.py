"""Sees to the webhook subscriptions of connections: made when a connection works, renewed in time, removed at the end.

Every replica has one, and nobody claims anything: a step is a durable operation under a derived key, so doing it
twice is doing it once, and a step of a row is taken by comparing what it was.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Protocol, Self

import structlog

from foundation.clock import Clock
from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.store.unit_of_work import Store
from services.registry.broker import failures
from services.registry.connections.connection import Connection, State
from services.registry.connections.picture import Picture
from services.registry.operations.bell import Bell
from services.registry.operations.book import OperationBook, Wanted
from services.registry.subscriptions import store
from services.registry.subscriptions.subscription import (
    Step,
    Subscription,
    Wish,
    concluded,
    failed,
    gone,
    wanted,
)
from services.registry.subscriptions.wishes import action_of, provisions, wishes
from tieline.plugin.v1.manifest_pb2 import Manifest

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
SOON_SECONDS = 0.1
"""After a step, since the next one is often there to be taken; and at least between two looks."""
AUTHOR = "services/registry"
FAREWELL = timedelta(hours=1)
"""How long the end of a connection waits for a provider to remove what it has."""
FAREWELL_LOOKS = 10


class Manifests(Protocol):
    def manifest(self, plugin: str, version_range: str = "") -> Manifest | None:
        """What serves whoever wants these versions."""


class Subscriber:
    """`async with` it."""

    def __init__(
        self,
        *,
        worker: Store,
        manifests: Manifests,
        operations: OperationBook,
        bell: Bell,
        picture: Picture,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._worker, self._manifests, self._operations = worker, manifests, operations
        self._bell, self._picture, self._url, self._clock = bell, picture, public_url.rstrip("/"), clock
        self._stepped = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="see to webhook subscriptions")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def look(self) -> bool:
        """Take the next step of every one that has one to take. Whether one of them waits for its operation."""
        async with self._worker.across_tenants() as work:
            rows = await store.everything(work)
        known: dict[str, list[Subscription]] = {}
        for row in rows:
            known.setdefault(f"tenants/{row.tenant}/connections/{row.connection}", []).append(row)
        manifests: dict[tuple[str, str], Manifest | None] = {}
        for connection in list(self._picture.snapshot.content.values()):
            wants = (connection.plugin, connection.wanted.version_range)
            if wants not in manifests:
                manifests[wants] = self._manifests.manifest(*wants)
            manifest, own = manifests[wants], known.get(connection.name, [])
            if manifest is not None and (own or provisions(manifest)):
                await self._see_to(connection, manifest, own)
        now = self._clock.now()
        return any(row.operation is not None and row.due <= now for row in rows)

    async def _see_to(self, connection: Connection, manifest: Manifest, own: list[Subscription]) -> None:
        wished = dict(wishes(connection, manifest, self._url))
        for webhook in wished.keys() - {row.webhook for row in own}:
            await self._add(connection, webhook, wished[webhook])
        for row in own:
            await self._try(row, wished.get(row.webhook), connection, manifest)

    async def remove(self, connection: Connection) -> None:
        """Before a connection is gone: a Problem while something of it is still at its provider, for an hour."""
        left: list[Subscription] = []
        for _ in range(FAREWELL_LOOKS):
            async with self._worker.across_tenants() as work:
                rows = await store.of(work, connection.tenant, connection.id)
                left = [row for row in rows if row.step is not Step.GONE]
                over = self._clock.now() - connection.state_time > FAREWELL
                if not left or over:
                    await store.delete(work, connection.tenant, connection.id)
                    if left:
                        log.warning("webhook subscriptions stay at the provider", connection=connection.name)
                    return
            await asyncio.sleep(LOOK_SECONDS / 2)
        why = f"{', '.join(row.webhook for row in left)} is still subscribed to"
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency=f"the provider of {connection.id}", why=why)

    async def _add(self, connection: Connection, webhook: str, wish: Wish) -> None:
        if connection.state is not State.ACTIVE:
            return
        one = Subscription(
            tenant=connection.tenant,
            connection=connection.id,
            webhook=webhook,
            instance=connection.instance,
            url=wish.url,
            due=self._clock.now(),
        )
        async with self._worker.across_tenants() as work:
            await store.insert(work, one)
        self._stepped = True

    async def _try(
        self, row: Subscription, wish: Wish | None, connection: Connection, manifest: Manifest
    ) -> None:
        try:
            await self._go_on(row, wish, connection, manifest)
        except Problem as away:
            log.debug("a subscription is seen to later", why=str(away))
        except Exception:  # the border of one: its neighbours are seen to
            log.exception("a subscription could not be seen to", connection=connection.name)

    async def _go_on(
        self, row: Subscription, wish: Wish | None, connection: Connection, manifest: Manifest
    ) -> None:
        now = self._clock.now()
        if row.due > now:
            return
        if not row.under_way:
            following = wanted(row, wish, now)
        elif row.operation is None:
            following = await self._submitted(row, connection, manifest)
        else:
            operation = await self._operations.get(row.tenant, row.operation)
            following = concluded(row, operation.progress, wish, now)
        if following == row:
            return
        async with self._worker.across_tenants() as work:
            taken = await store.update(work, row, following)
        if taken:
            self._stepped = True
            log.info("a subscription", connection=connection.name, webhook=row.webhook, step=following.step)

    async def _submitted(self, row: Subscription, connection: Connection, manifest: Manifest) -> Subscription:
        action = action_of(row, manifest)
        now = self._clock.now()
        if not action:  # a person made it, or has to remove it
            return gone(row)
        event_types = [one.type for one in manifest.event_types]
        order = Wanted(
            connection=connection.name,
            action=action,
            arguments=row.arguments(event_types),
            key=row.key,
            cause=f"subscription of {row.webhook}",
            start_deadline=now + FAREWELL,
            receives=True,
        )
        try:
            operation = await self._operations.submit(row.tenant, order, author=AUTHOR)
        except Problem as problem:
            if problem.code is not Code.INVALID_ARGUMENT:
                raise
            return failed(row, failures.invalid_config("NOT_SUBMITTED", problem.sentence), now)
        return replace(row, operation=operation.id)

    async def _keep(self) -> None:
        while True:
            self._stepped = waiting = False
            try:
                if self._picture.snapshot.known:
                    waiting = await self.look()
            except Problem as away:
                log.debug("subscriptions are seen to later", why=str(away))
            except Exception:  # a task's border
                log.exception("subscriptions are seen to later")
            if waiting and not self._stepped:
                await self._bell.heard(LOOK_SECONDS)
            await asyncio.sleep(SOON_SECONDS if waiting or self._stepped else LOOK_SECONDS)
