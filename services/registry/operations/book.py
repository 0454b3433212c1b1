"""Submitting operations, reading them, and what a person may say about one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.clock import Clock, time_ordered_uuid
from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.store.unit_of_work import Store
from services.registry.broker.documents import Unfit, canonical
from services.registry.broker.executing import seconds_of
from services.registry.connections import store as connections
from services.registry.connections.connection import Connection
from services.registry.connections.connection import State as ConnectionState
from services.registry.operations import store
from services.registry.operations.bell import Bell
from services.registry.operations.machine import (
    START_WITHIN,
    CancelWanted,
    Happening,
    Impossible,
    Machine,
    Resolved,
    RetryWanted,
)
from services.registry.operations.measuring import OperationMetrics
from services.registry.operations.operation import Operation, Progress, Repeats, State
from services.registry.recording import Change, Recorder
from tieline.plugin.v1.manifest_pb2 import Action, Manifest

KEPT = timedelta(days=7)
"""A key stands for its operation this long at least."""
LONGEST_WAIT = timedelta(days=30)
KEY_CHARACTERS = 128
CAUSE_BYTES = 512
ORDERING_BYTES = 256
REASON_BYTES = 256
LOOK_SECONDS = 1.0
"""How late a watcher learns of what another replica did."""


class Manifests(Protocol):
    def manifest(self, plugin: str, version_range: str = "") -> Manifest | None:
        """What serves whoever wants these versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody wants done."""

    connection: str
    action: str
    arguments: bytes = b""
    key: str = ""
    cause: str = ""
    ordering_key: str = ""
    start_deadline: datetime | None = None
    receives: bool = False
    """The platform's own: it goes on while the connection rests or ends."""


class OperationBook:
    def __init__(
        self,
        *,
        own: Store,
        manifests: Manifests,
        recorder: Recorder,
        bell: Bell,
        clock: Clock,
        machine: Machine | None = None,
        metrics: OperationMetrics | None = None,
    ) -> None:
        self._own, self._manifests, self._recorder = own, manifests, recorder
        self._bell, self._clock, self._machine = bell, clock, machine or Machine()
        self._metrics = metrics

    async def submit(
        self, tenant: str, wanted: Wanted, *, author: str, validate_only: bool = False
    ) -> Operation:
        """The same key with the same arguments answers the operation that is there."""
        operation = await self._new(tenant, wanted, author)
        before = self._clock.now() - KEPT
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            there = await store.by_key(work, operation, before)
        if there is not None or validate_only:
            return _same(operation, there)
        details = {"connection": operation.connection, "action": operation.action}
        async with (
            self._recorder.making(
                Change(action="operation.submit", resource=operation.name, details=details)
            ),
            self._own.unit_of_work(tenants=[tenant]) as work,
        ):
            made = await store.insert(work, operation, before)
            found = await store.by_key(work, operation, before)
        self._bell.ring()
        return _same(operation, found) if not made else (found or operation)

    async def get(self, tenant: str, id_: str) -> Operation:
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return _there(await store.get(work, tenant, id_), tenant, id_)

    async def list(
        self, tenant: str, *, before: int, connection: str, states: Collection[State], size: int
    ) -> tuple[list[Operation], bool]:
        """A page, newest first, and whether there is more."""
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            return await store.listed(
                work, tenant, before=before, connection=connection, states=states, size=size
            )

    async def watch(self, tenant: str, id_: str) -> AsyncIterator[Operation]:
        """As it is now, and after each change, until it has ended."""
        seen = 0
        while self._bell.open:
            async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
                changes = await store.changes(work, tenant, id_)
            if changes != seen:
                found = await self.get(tenant, id_)
                seen = found.changes
                yield found
                if found.progress.ended:
                    return
            await self._bell.heard(LOOK_SECONDS)

    async def cancel(self, tenant: str, id_: str) -> Operation:
        return await self._said(tenant, id_, CancelWanted(), action="operation.cancel", wanted="cancelled")

    async def retry(self, tenant: str, id_: str) -> Operation:
        return await self._said(tenant, id_, RetryWanted(), action="operation.retry", wanted="tried again")

    async def resolve(self, tenant: str, id_: str, *, applied: bool, reason: str) -> Operation:
        _bounded(reason, REASON_BYTES, "reason")
        details = {"applied": str(applied).lower(), "reason": reason}
        return await self._said(
            tenant, id_, Resolved(applied), action="operation.resolve", wanted="resolved", details=details
        )

    async def remove(self, connection: Connection) -> None:
        """The connection is being ended: what waits is taken back, what is under way ends as it ends."""
        now = self._clock.now()
        async with self._own.unit_of_work(tenants=[connection.tenant]) as work:
            for operation in await store.open_of(work, connection.tenant, connection.name):
                await self._advance(work, operation, CancelWanted(), now)
        self._bell.ring()

    async def _said(
        self,
        tenant: str,
        id_: str,
        what: Happening,
        *,
        action: str,
        wanted: str,
        details: dict[str, str] | None = None,
    ) -> Operation:
        """What a person says of one. What cannot be is refused before it is recorded."""
        now = self._clock.now()
        before = await self.get(tenant, id_)
        if self._next(before, what, wanted, now) == before.progress:
            return before
        change = Change(action=action, resource=before.name, details=details or {})
        async with self._recorder.making(change), self._own.unit_of_work(tenants=[tenant]) as work:
            operation = _there(await store.lock(work, tenant, id_), tenant, id_)
            self._next(operation, what, wanted, now)
            await self._advance(work, operation, what, now)
        self._bell.ring()
        return await self.get(tenant, id_)

    def _next(self, operation: Operation, what: Happening, wanted: str, now: datetime) -> Progress:
        try:
            return self._machine.step(operation.progress, what, now, 0.0)
        except Impossible as why:
            raise Problem(
                Code.STATE_REFUSES, what=f"operation {operation.id}", wanted=wanted, why=str(why)
            ) from None

    async def _advance(self, work: AsyncConnection, was: Operation, what: Happening, now: datetime) -> None:
        progress = self._machine.step(was.progress, what, now, random.random())  # noqa: S311  spreads
        if progress != was.progress:
            await store.update(work, was, progress, now)
            if self._metrics is not None:
                self._metrics.happened(was.progress, what, progress)

    async def _new(self, tenant: str, wanted: Wanted, author: str) -> Operation:
        """What would be stored, or the problem that names what cannot be."""
        action = await self._action(tenant, wanted)
        try:
            arguments = canonical(wanted.arguments, action.input_schema)
        except Unfit as unfit:
            raise _bad("arguments", str(unfit)) from None
        if len(wanted.key) > KEY_CHARACTERS or not (wanted.key.isascii() and wanted.key.isprintable()):
            raise _bad("idempotency_key", f"a key has at most {KEY_CHARACTERS} ASCII characters that show")
        _bounded(wanted.cause, CAUSE_BYTES, "operation.cause")
        _bounded(wanted.ordering_key, ORDERING_BYTES, "operation.ordering_key")
        now = self._clock.now()
        deadline = wanted.start_deadline or now + START_WITHIN
        if not now < deadline <= now + LONGEST_WAIT:
            raise _bad("start_deadline", f"it is not within the next {LONGEST_WAIT.days} days")
        id_ = time_ordered_uuid(now)
        progress = Progress(due=now, start_deadline=deadline, repeats=Repeats.of(action))
        return Operation(
            tenant=tenant,
            id=id_,
            connection=wanted.connection,
            action=action.name,
            arguments=arguments,
            key=wanted.key or id_,
            author=author,
            cause=wanted.cause,
            ordering_key=wanted.ordering_key,
            receives=wanted.receives,
            timeout=seconds_of(action),
            create_time=now,
            state_time=now,
            progress=progress,
        )

    async def _action(self, tenant: str, wanted: Wanted) -> Action:
        owner, id_ = parse("tenants/*/connections/*", wanted.connection, "operation.connection")
        if owner != tenant:
            raise _bad("connection", "it belongs to another tenant")
        async with self._own.unit_of_work(tenants=[tenant], read_only=True) as work:
            connection = await connections.get(work, tenant, id_)
        if connection is None:
            why = f"there is no connection {id_}; `tieline connection list` shows what there is"
            raise _bad("connection", why)
        if connection.state is ConnectionState.DELETING and not wanted.receives:
            raise _bad("connection", f"{id_} is being deleted")
        manifest = self._manifests.manifest(connection.plugin, connection.wanted.version_range)
        if manifest is None:
            raise _bad("connection", f"its plugin {connection.plugin} is not installed")
        for action in manifest.actions:
            if action.name == wanted.action:
                return action
        there = ", ".join(action.name for action in manifest.actions) or "nothing"
        raise _bad("action", f"{manifest.name} has no action {wanted.action[:64]!r}; it can do {there}")


def _same(wanted: Operation, there: Operation | None) -> Operation:
    """What the key stands for already; the problem KEY_REUSED if that is something else."""
    if there is None:
        return wanted
    if there.arguments != wanted.arguments:
        raise Problem(Code.KEY_REUSED, key=there.key, action=there.action, operation=there.name)
    return there


def _there(found: Operation | None, tenant: str, id_: str) -> Operation:
    if found is None:
        raise Problem(Code.NOT_FOUND, what=f"operation {id_[:100]} in tenant {tenant}")
    return found


def _bounded(text: str, limit: int, field: str) -> None:
    if len(text.encode()) > limit or "\0" in text:
        raise Problem(
            Code.INVALID_ARGUMENT, field=field, why=f"it is longer than {limit} bytes, or holds a NUL"
        )


def _bad(field: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field=f"operation.{field}", why=why)
