from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foundation.identity.names import parse, tenant_of
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext, author
from services.registry.connections.book import ConnectionBook
from services.registry.connections.connection import Connection
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1 import connections_pb2_grpc

# ruff: noqa: N802  the contract's names


class ConnectionServicer(connections_pb2_grpc.ConnectionServiceServicer):
    def __init__(self, book: ConnectionBook, public_url: str) -> None:
        self._book = book
        self._public_url = public_url.rstrip("/")

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

    def _shown(self, connection: Connection) -> pb.Connection:
        shown = pb.Connection()
        shown.CopyFrom(connection.wanted)
        shown.MergeFrom(
            pb.Connection(
                name=connection.name,
                state=pb.Connection.State.Value(f"STATE_{connection.state.name}"),
                state_time=_moment(connection.state_time),
                failure=connection.failure,
                revision=connection.revision,
                application=pb.Connection.Application.Value(f"APPLICATION_{connection.application.name}"),
                applied_revision=connection.applied_revision,
                application_failure=connection.application_failure,
                resolved_version=connection.resolved_version,
                webhook_urls={
                    webhook: f"{self._public_url}/hooks/{endpoint}"
                    for webhook, endpoint in connection.endpoints.items()
                },
                subscriptions=connection.subscriptions,
                create_time=_moment(connection.create_time),
                update_time=_moment(connection.update_time),
                etag=connection.etag,
            )
        )
        return shown


def _moment(value: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def _id(connection: Connection) -> str:
    return connection.id
