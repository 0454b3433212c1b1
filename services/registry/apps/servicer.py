from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from services.registry.apps.app import App
from services.registry.apps.book import AppBook
from services.registry.connections.shown import Shown
from tieline.registry.v1 import apps_pb2 as pb
from tieline.registry.v1 import apps_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection

# ruff: noqa: N802  the contract's names


class AppServicer(apps_pb2_grpc.AppServiceServicer):
    def __init__(self, book: AppBook, connection: Shown, public_url: str) -> None:
        self._book, self._public_url = book, public_url.rstrip("/")
        self._connection = connection

    async def CreateApp(self, request: pb.CreateAppRequest, _: ServicerContext) -> pb.App:
        return self._shown(
            await self._book.create(request.app_id, request.app, request_id=request.request_id)
        )

    async def GetApp(self, request: pb.GetAppRequest, _: ServicerContext) -> pb.App:
        (id_,) = parse("apps/*", request.name, "name")
        return self._shown(await self._book.get(id_))

    async def ListApps(self, request: pb.ListAppsRequest, _: ServicerContext) -> pb.ListAppsResponse:
        size = paging.page_size(request.page_size)
        found = await self._book.list(paging.after(request.page_token), size + 1)
        page, more = paging.cut(found, size, _id)
        return pb.ListAppsResponse(apps=map(self._shown, page), next_page_token=more)

    async def UpdateApp(self, request: pb.UpdateAppRequest, _: ServicerContext) -> pb.App:
        (id_,) = parse("apps/*", request.app.name, "app.name")
        changed = await self._book.update(
            id_, request.app, list(request.update_mask.paths), etag=request.app.etag
        )
        return self._shown(changed)

    async def DeleteApp(self, request: pb.DeleteAppRequest, _: ServicerContext) -> Empty:
        (id_,) = parse("apps/*", request.name, "name")
        await self._book.delete(id_, request.etag)
        return Empty()

    async def ApproveAccountKey(self, request: pb.ApproveAccountKeyRequest, _: ServicerContext) -> Connection:
        tenant, id_ = parse("tenants/*/connections/*", request.connection, "connection")
        return self._connection(await self._book.approve(tenant, id_, request.account_key))

    def _shown(self, app: App) -> pb.App:
        shown = pb.App()
        shown.CopyFrom(app.content)
        shown.name, shown.etag = app.name, app.etag
        shown.create_time.FromDatetime(app.create_time)
        for webhook, endpoint in app.endpoints.items():
            shown.webhook_urls[webhook] = f"{self._public_url}/hooks/{endpoint}"
        return shown


def _id(app: App) -> str:
    return app.id
