"""Pauses exactly the connections that use a credential which does not work, and resumes them when it does.

The vault tells the state of every credential that a grant covers; each picture replaces the one before. While
the vault is away, what it said last holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Self

import structlog
from grpc.aio import Channel

from foundation.clock import Clock
from foundation.clock.tasks import end, woken
from foundation.errors import Problem
from foundation.rpc import follow
from foundation.store.unit_of_work import Store
from services.registry.connections import store
from services.registry.connections.connection import Connection, State
from services.registry.connections.picture import Connections, Picture
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1 import credentials_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import (
    Credential,
    WatchCredentialStatesRequest,
    WatchCredentialStatesResponse,
)

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
SETTLED = timedelta(seconds=10)
"""A grant is older than its connection; after this long the vault's picture must know it."""

BROKEN = "CREDENTIAL_BROKEN"
"""The reason that marks a suspension as ours."""

_BROKEN: Mapping[Credential.State.ValueType, str] = {
    Credential.STATE_EXPIRED: "has expired",
    Credential.STATE_REFUSED: "is refused by its provider",
    Credential.STATE_REAUTHORISATION_REQUIRED: "needs a person to consent again",
    Credential.STATE_REVOKED: "was revoked",
}

States = Mapping[str, WatchCredentialStatesResponse.CredentialState]


class Suspender:
    """`async with` it."""

    def __init__(self, vault: Channel, worker: Store, picture: Picture, clock: Clock) -> None:
        self._stub = credentials_pb2_grpc.CredentialServiceStub(vault)
        self._worker, self._picture, self._clock = worker, picture, clock
        self._states: States | None = None
        self._told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        watch = partial(self._stub.WatchCredentialStates, WatchCredentialStatesRequest())
        self._tasks = [
            asyncio.create_task(follow("credentials", watch, self._hear), name="hear of credentials"),
            asyncio.create_task(self._keep(), name="suspend connections"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            await end(task)

    def _hear(self, message: WatchCredentialStatesResponse) -> None:
        self._states = {state.credential: state for state in message.states}
        self._told.set()

    async def _keep(self) -> None:
        """Connections change too, and so does how long one has been there: so a look comes now and then."""
        while True:
            await woken(self._told, LOOK_SECONDS)
            try:
                await self._judge(self._picture.snapshot.content)
            except Problem as away:
                log.debug("connections stay as they are", why=str(away))
            except Exception:  # a task's border
                log.exception("connections stay as they are")

    async def _judge(self, connections: Connections) -> None:
        states = self._states
        if states is None:
            return
        now = self._clock.now()
        for connection in connections.values():
            settled = connection.update_time < now - SETTLED
            failure = reason(connection, states, settled=settled)
            if connection.state is State.SUSPENDED and not _ours(connection):
                continue  # for a permission, which its provider knows of
            if (failure is None) is (connection.state is not State.SUSPENDED):
                continue
            if connection.state in (State.PAUSED, State.DELETING):
                continue  # a person has said what it does; when it goes on, it is judged again
            async with self._worker.across_tenants() as work:
                if failure is None:
                    await store.resumed(work, connection, now)
                else:
                    await store.suspended(work, connection, failure, now)
            log.info("a connection is judged anew", connection=connection.name, suspended=failure is not None)
            self._picture.notice()


def _ours(connection: Connection) -> bool:
    return connection.failure is not None and connection.failure.reason == BROKEN


def reason(connection: Connection, states: States, *, settled: bool) -> Failure | None:
    """Why the connection cannot work with its credentials; None if it can, as far as is known."""
    for binding in connection.wanted.credentials:
        state = states.get(binding.credential)
        if state is None:
            if settled:
                return _failure(binding.slot, f"{binding.credential} is gone, or its grant is")
        elif state.state in _BROKEN:
            said = f": {state.failure.message}" if state.failure.message else ""
            return _failure(binding.slot, f"{binding.credential} {_BROKEN[state.state]}{said}")
    return None


def _failure(slot: str, message: str) -> Failure:
    failure = Failure(kind=FAILURE_KIND_AUTH_FAILED, reason=BROKEN, message=message[:1024])
    failure.credential_version.slot = slot
    return failure
