"""Many connections from one request: each is created or changed by itself, and each has an outcome of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from services.registry.broker import failures
from services.registry.connections import store
from services.registry.connections.book import ConnectionBook
from services.registry.connections.changing import Changing
from services.registry.connections.connection import Connection
from services.registry.connections.wanted import SETTABLE, settable
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.registry.v1 import connections_pb2 as pb

MOST = 500
AT_ONCE = 8
ACTION = "connection.apply"

_KINDS = {
    Code.INVALID_ARGUMENT: FailureKind.FAILURE_KIND_INVALID_INPUT,
    Code.NOT_FOUND: FailureKind.FAILURE_KIND_NOT_FOUND,
    Code.CONFLICT: FailureKind.FAILURE_KIND_CONFLICT,
    Code.ALREADY_EXISTS: FailureKind.FAILURE_KIND_CONFLICT,
    Code.STATE_REFUSES: FailureKind.FAILURE_KIND_CONFLICT,
    Code.ROLE_MISSING: FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    Code.TENANT_FOREIGN: FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    Code.DEPENDENCY_UNAVAILABLE: FailureKind.FAILURE_KIND_TRANSIENT,
}


@dataclass(frozen=True, slots=True)
class Order:
    """What holds for all of them."""

    tenant: str
    request_id: str
    validate_only: bool
    author: str


class Many:
    def __init__(self, book: ConnectionBook, changing: Changing) -> None:
        self._book, self._changing = book, changing

    async def apply(self, order: Order, given: Sequence[pb.Connection]) -> list[Connection | Failure]:
        """Same length and order; that one is refused stops none of the others."""
        if len(given) > MOST:
            why = f"there are {len(given)}, and {MOST} fit into one request"
            raise Problem(Code.INVALID_ARGUMENT, field="connections", why=why)
        if order.request_id:
            _uuid(order.request_id)
        names = [one.name for one in given]
        room = asyncio.Semaphore(AT_ONCE)

        async def outcome(place: int, one: pb.Connection) -> Connection | Failure:
            if one.name in names[:place]:
                why = f"{one.name[:200]} stands in this request twice"
                return failures.invalid_input("TWICE", why)
            async with room:
                try:
                    return await self._apply(order, one)
                except Problem as problem:
                    return _failure(problem)

        return list(await asyncio.gather(*(outcome(place, one) for place, one in enumerate(given))))

    async def _apply(self, order: Order, given: pb.Connection) -> Connection:
        tenant, id_ = parse("tenants/*/connections/*", given.name, "connection.name")
        if tenant != order.tenant:
            why = "it belongs to another tenant than the request"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.name", why=why)
        async with self._book.own.unit_of_work(tenants=[tenant], read_only=True) as work:
            present = await store.get(work, tenant, id_)
        if present is None and given.etag:
            raise Problem(Code.NOT_FOUND, what=f"connection {given.name}, which the etag is of")
        # Of its own for each, made of the whole one's: the same request again changes nothing again.
        request_id = str(uuid.uuid5(_uuid(order.request_id), given.name)) if order.request_id else ""
        settable(given)
        if present is None:
            return await self._book.create(
                tenant,
                id_,
                given,
                request_id=request_id,
                validate_only=order.validate_only,
                author=order.author,
                action=ACTION,
                settle=False,
            )
        if given.plugin and given.plugin != present.wanted.plugin:
            why = f"it never changes, and is {present.wanted.plugin}"
            raise Problem(Code.INVALID_ARGUMENT, field="connection.plugin", why=why)
        return await self._changing.update(
            tenant,
            id_,
            given,
            [name for name in SETTABLE if name != "plugin"],
            etag=given.etag or present.etag,
            request_id=request_id,
            validate_only=order.validate_only,
            author=order.author,
            action=ACTION,
            settle=False,
        )


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Problem(Code.INVALID_ARGUMENT, field="request_id", why="it is not a UUID") from None


def _failure(problem: Problem) -> Failure:
    failure = failures.internal(problem.code.name, problem.text)
    failure.kind = _KINDS.get(problem.code, FailureKind.FAILURE_KIND_INTERNAL)
    return failure
