"""Pausing a connection, letting it go on, and ending it: what a person says about whether it works at all."""

from __future__ import annotations

from foundation.errors import Code, Problem
from services.registry.broker import failures
from services.registry.broker.broker import Broker
from services.registry.connections import store
from services.registry.connections.book import ConnectionBook
from services.registry.connections.connection import Application, Connection, State
from services.registry.connections.ending import Ender
from services.registry.connections.wanted import demand_line
from services.registry.etags import changed_since
from services.registry.host.host import Host
from services.registry.recording import Change


class Resting:
    def __init__(self, book: ConnectionBook, host: Host, broker: Broker, ender: Ender) -> None:
        self._book, self._host, self._broker, self._ender = book, host, broker, ender

    async def pause(self, tenant: str, id_: str, reason: str, author: str) -> Connection:
        demand_line("reason", reason)
        connection = self._demand_there(await self._book.get(tenant, id_), "paused")
        why = failures.transient("PAUSED_BY_PERSON", reason or f"paused by {author}")
        if connection.state is State.PAUSED and (not reason or connection.failure == why):
            return connection
        async with (
            self._book.recorder.making(_change("connection.pause", connection, reason=why.message)),
            self._book.own.unit_of_work(tenants=[tenant]) as work,
        ):
            await store.paused(work, connection, why, self._book.clock.now())
        return await self._book.told(connection, settle=False)

    async def resume(self, tenant: str, id_: str) -> Connection:
        """What the platform paused itself is tried first; what could not be applied is tried again."""
        connection = self._demand_there(await self._book.get(tenant, id_), "resumed")
        asleep = connection.state in (State.PAUSED, State.SUSPENDED)
        if not asleep and connection.application is not Application.FAILED:
            return connection
        if connection.state is State.SUSPENDED:
            await self._demand_working(tenant, id_)
        async with (
            self._book.recorder.making(_change("connection.resume", connection)),
            self._book.own.unit_of_work(tenants=[tenant]) as work,
        ):
            await store.awake(work, connection, self._book.clock.now())
        return await self._book.told(connection)

    async def delete(self, tenant: str, id_: str, etag: str) -> None:
        """It takes no call from now on; the rest of the end follows, whatever happens to us. None: it has ended."""
        async with self._book.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            connection = await store.get(work, tenant, id_)
        if connection is None or connection.state is State.DELETING:
            return
        if etag and etag != connection.etag:
            raise changed_since(connection)
        async with self._book.recorder.making(_change("connection.delete", connection)):
            async with self._book.own.unit_of_work(tenants=[tenant]) as work:
                gone = await store.deleting(work, connection, etag, self._book.clock.now())
            if not gone and etag:
                raise changed_since(connection)
        self._ender.notice()
        await self._book.told(connection, settle=False)

    async def _demand_working(self, tenant: str, id_: str) -> None:
        """The revision that serves, or the one that is to."""
        async with self._book.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            serving = await store.serving(work, tenant, id_)
        if serving is None:
            return
        served = serving.served(serving.applied_revision or serving.revision)
        process = self._host.route(served)
        why = "its plugin is not installed"
        if process is not None:
            failure = (await self._broker.examining.examine(process, served)).failure
            if failure is None:
                return
            why = failure.message
        raise Problem(Code.STATE_REFUSES, what=serving.name, wanted="resumed", why=why)

    def _demand_there(self, connection: Connection, wanted: str) -> Connection:
        if connection.state is State.DELETING:
            why = "it is being deleted"
            raise Problem(Code.STATE_REFUSES, what=connection.name, wanted=wanted, why=why)
        return connection


def _change(action: str, connection: Connection, **details: str) -> Change:
    return Change(action=action, resource=connection.name, details=details)
