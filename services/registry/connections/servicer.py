from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext, author
from foundation.rpc.times import stamp
from services.registry.connections.book import ConnectionBook
from services.registry.connections.changing import Changing
from services.registry.connections.checking import Checking
from services.registry.connections.connection import Connection, Revision
from services.registry.connections.history import differences
from services.registry.connections.many import Many, Order
from services.registry.connections.picture import Picture
from services.registry.connections.resting import Resting
from services.registry.connections.shown import Shown
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1 import connections_pb2_grpc

# ruff: noqa: N802  the contract's names


PART = 500
PART_BYTES = 1024 * 1024
NEWEST = 2**62
"""Above every revision."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What people can do with connections."""

    book: ConnectionBook
    changing: Changing
    resting: Resting
    many: Many
    checking: Checking


class ConnectionServicer(connections_pb2_grpc.ConnectionServiceServicer):
    def __init__(self, parts: Parts, picture: Picture, shown: Shown) -> None:
        self._parts, self._book, self._picture = parts, parts.book, picture
        self._shown = shown

    async def CreateConnection(
        self, request: pb.CreateConnectionRequest, _: ServicerContext
    ) -> pb.Connection:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        made = await self._book.create(
            tenant,
            request.connection_id,
            request.connection,
            request_id=request.request_id,
            validate_only=request.validate_only,
            author=author(),
        )
        return self._shown(made)

    async def GetConnection(self, request: pb.GetConnectionRequest, _: ServicerContext) -> pb.Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        return self._shown(await self._book.get(tenant, id_))

    async def ListConnections(
        self, request: pb.ListConnectionsRequest, _: ServicerContext
    ) -> pb.ListConnectionsResponse:
        parse("tenants/*", request.parent, "parent")
        size = paging.page_size(request.page_size)
        found = await self._book.list(
            tenant_of(request.parent),
            after=paging.after(request.page_token),
            plugin=request.plugin.removeprefix("plugins/"),
            limit=size + 1,
        )
        page, more = paging.cut(found, size, _id)
        return pb.ListConnectionsResponse(connections=map(self._shown, page), next_page_token=more)

    async def UpdateConnection(
        self, request: pb.UpdateConnectionRequest, _: ServicerContext
    ) -> pb.Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.connection.name, "connection.name")
        return self._shown(
            await self._parts.changing.update(
                tenant,
                id_,
                request.connection,
                list(request.update_mask.paths),
                etag=request.connection.etag,
                request_id=request.request_id,
                validate_only=request.validate_only,
                author=author(),
            )
        )

    async def ApplyConnections(
        self, request: pb.ApplyConnectionsRequest, _: ServicerContext
    ) -> pb.ApplyConnectionsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        order = Order(tenant, request.request_id, request.validate_only, author())
        answer = pb.ApplyConnectionsResponse()
        for outcome in await self._parts.many.apply(order, request.connections):
            if isinstance(outcome, Connection):
                answer.outcomes.add(connection=self._shown(outcome))
            else:
                answer.outcomes.add(failure=outcome)
        return answer

    async def DeleteConnection(self, request: pb.DeleteConnectionRequest, _: ServicerContext) -> Empty:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        await self._parts.resting.delete(tenant, id_, request.etag)
        return Empty()

    async def PauseConnection(self, request: pb.PauseConnectionRequest, _: ServicerContext) -> pb.Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        return self._shown(await self._parts.resting.pause(tenant, id_, request.reason, author()))

    async def ResumeConnection(
        self, request: pb.ResumeConnectionRequest, _: ServicerContext
    ) -> pb.Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        return self._shown(await self._parts.resting.resume(tenant, id_))

    async def CheckConnection(
        self, request: pb.CheckConnectionRequest, _: ServicerContext
    ) -> pb.CheckConnectionResponse:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        findings = [
            pb.CheckConnectionResponse.Finding(
                subject=one.subject, ok=one.failure is None, failure=one.failure, advice=one.advice
            )
            for one in await self._parts.checking.check(tenant, id_)
        ]
        return pb.CheckConnectionResponse(ok=all(one.ok for one in findings), findings=findings)

    async def ListConnectionRevisions(
        self, request: pb.ListConnectionRevisionsRequest, _: ServicerContext
    ) -> pb.ListConnectionRevisionsResponse:
        tenant, id_ = parse("tenants/*/connections/*", request.parent, "parent")
        size = paging.page_size(request.page_size)
        last = paging.after(request.page_token)
        if last and not last.isdecimal():
            raise Problem(Code.INVALID_ARGUMENT, field="page_token", why="it is not one that a page gave")
        before = min(int(last or NEWEST), NEWEST)
        found = await self._book.revisions(tenant, id_, before=before, limit=size + 1)
        page, more = paging.cut(found, size, _number)
        earlier: list[Revision | None] = [*found[1:], None]
        shown = [_revision(request.parent, one, former) for one, former in zip(page, earlier, strict=False)]
        return pb.ListConnectionRevisionsResponse(connection_revisions=shown, next_page_token=more)

    async def RollbackConnection(
        self, request: pb.RollbackConnectionRequest, _: ServicerContext
    ) -> pb.Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.name, "name")
        return self._shown(
            await self._parts.changing.go_back(
                tenant,
                id_,
                request.revision,
                etag=request.etag,
                request_id=request.request_id,
                author=author(),
            )
        )

    async def WatchConnections(
        self, _: pb.WatchConnectionsRequest, __: ServicerContext
    ) -> AsyncIterator[pb.WatchConnectionsResponse]:
        """Each at the revision that serves."""
        async for snapshot in self._picture.watch():
            shown = map(self._shown, snapshot.content.values())
            for part in watched(shown, snapshot.generation):
                yield part


def _id(connection: Connection) -> str:
    return connection.id


def watched(connections: Iterable[pb.Connection], generation: int) -> Iterator[pb.WatchConnectionsResponse]:
    """One picture in pieces that a message holds; an empty picture is a picture too."""
    part, size = pb.WatchConnectionsResponse(generation=generation), 0
    for one in connections:
        weight = one.ByteSize()
        if part.connections and (len(part.connections) == PART or size + weight > PART_BYTES):
            part.more = True
            yield part
            part, size = pb.WatchConnectionsResponse(generation=generation), 0
        part.connections.append(one)
        size += weight
    yield part


def _number(revision: Revision) -> str:
    return str(revision.number)


def _revision(parent: str, revision: Revision, before: Revision | None) -> pb.ConnectionRevision:
    fields, patch = differences(revision, before)
    wanted = pb.Connection()
    wanted.CopyFrom(revision.wanted)
    wanted.name = parent
    return pb.ConnectionRevision(
        name=f"{parent}/revisions/{revision.number}",
        revision=revision.number,
        connection=wanted,
        changed_fields=fields,
        settings_patch=patch,
        author=revision.author,
        create_time=stamp(revision.create_time),
        application=pb.Connection.Application.Value(f"APPLICATION_{revision.application.name}"),
        rollback_of=revision.rollback_of,
    )
