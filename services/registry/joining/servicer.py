from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc.call import ServicerContext
from services.registry.catalogue.catalogue import Published
from services.registry.joining.book import JoinBook
from tieline.registry.v1 import joining_pb2 as pb
from tieline.registry.v1 import joining_pb2_grpc

# ruff: noqa: N802  the contract's names

Holder = Callable[[ServicerContext], str | None]
"""The process whose certificate made a connection; None: whoever it is showed none."""


class TokenServicer(joining_pb2_grpc.JoinServiceServicer):
    """For people, on the registry's API. All else of JoinService is served over TLS alone."""

    def __init__(self, book: JoinBook, versions: Callable[[str], Sequence[Published]]) -> None:
        self._book, self._versions = book, versions

    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, _: ServicerContext
    ) -> pb.CreateJoinTokenResponse:
        (plugin,) = parse("plugins/*", request.plugin, "plugin")
        versions = self._versions(plugin)
        if not versions:
            raise Problem(Code.NOT_FOUND, what=f"plugin {plugin}")
        if not any(version.runs_elsewhere for version in versions):
            # It would be let in, and never be called.
            why = "its manifest says that it is started here"
            raise Problem(Code.STATE_REFUSES, what=f"plugin {plugin}", wanted="joined", why=why)
        token, expire_time = await self._book.create_token(plugin, request.version_range)
        answer = pb.CreateJoinTokenResponse(
            join_token=token, ca_certificates=self._book.authority.certificate
        )
        answer.expire_time.FromDatetime(expire_time)
        return answer


class PeerServicer(joining_pb2_grpc.JoinServiceServicer):
    """For plugins, behind the front that knows whose certificate a connection showed."""

    def __init__(self, book: JoinBook, holder: Holder, announce_every: timedelta) -> None:
        self._book, self._holder, self._every = book, holder, announce_every

    async def Join(self, request: pb.JoinRequest, _: ServicerContext) -> pb.JoinResponse:
        joined = await self._book.join(
            request.join_token, request.certificate_request, request.plugin, request.version
        )
        return pb.JoinResponse(
            certificates=joined.certificates,
            ca_certificates=self._book.authority.certificate,
            process=joined.process,
        )

    async def RenewCertificate(
        self, request: pb.RenewCertificateRequest, context: ServicerContext
    ) -> pb.RenewCertificateResponse:
        certificates = await self._book.renew(self._peer(context), request.certificate_request)
        return pb.RenewCertificateResponse(
            certificates=certificates, ca_certificates=self._book.authority.certificate
        )

    async def Announce(self, request: pb.AnnounceRequest, context: ServicerContext) -> pb.AnnounceResponse:
        restart = await self._book.announce(self._peer(context), request.address)
        answer = pb.AnnounceResponse(restart_wanted=restart)
        answer.announce_after.FromTimedelta(self._every)
        return answer

    def _peer(self, context: ServicerContext) -> str:
        process = self._holder(context)
        if process is None:
            raise Problem(Code.TOKEN_INVALID, why="the connection was made without a plugin's certificate")
        return process
