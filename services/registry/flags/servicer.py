from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext, author
from services.registry.flags.book import FlagBook
from services.registry.flags.flag import Flag
from tieline.registry.v1 import flags_pb2 as pb
from tieline.registry.v1 import flags_pb2_grpc

# ruff: noqa: N802  the contract's names


class FlagServicer(flags_pb2_grpc.FlagServiceServicer):
    def __init__(self, book: FlagBook) -> None:
        self._book = book

    async def CreateFlag(self, request: pb.CreateFlagRequest, _: ServicerContext) -> pb.Flag:
        made = await self._book.create(
            request.flag_id, request.flag, request_id=request.request_id, author=author()
        )
        return _shown(made)

    async def GetFlag(self, request: pb.GetFlagRequest, _: ServicerContext) -> pb.Flag:
        (id_,) = parse("flags/*", request.name, "name")
        return _shown(await self._book.get(id_))

    async def ListFlags(self, request: pb.ListFlagsRequest, _: ServicerContext) -> pb.ListFlagsResponse:
        size = paging.page_size(request.page_size)
        found = await self._book.list(paging.after(request.page_token), size + 1)
        page, more = paging.cut(found, size, _id)
        return pb.ListFlagsResponse(flags=map(_shown, page), next_page_token=more)

    async def UpdateFlag(self, request: pb.UpdateFlagRequest, _: ServicerContext) -> pb.Flag:
        (id_,) = parse("flags/*", request.flag.name, "flag.name")
        changed = await self._book.update(
            id_, request.flag, request.update_mask.paths, etag=request.flag.etag, author=author()
        )
        return _shown(changed)

    async def DeleteFlag(self, request: pb.DeleteFlagRequest, _: ServicerContext) -> Empty:
        (id_,) = parse("flags/*", request.name, "name")
        await self._book.delete(id_, etag=request.etag, author=author())
        return Empty()


def _shown(flag: Flag) -> pb.Flag:
    shown = pb.Flag(name=flag.name, etag=flag.etag)
    shown.MergeFrom(flag.content)
    return shown


def _id(flag: Flag) -> str:
    return flag.id
