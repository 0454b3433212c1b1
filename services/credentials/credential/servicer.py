"""CredentialService: the contract's words on one side, `Book`, `GrantBook` and `Cover` on the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import new_id, parse
from foundation.rpc.call import author, caller
from foundation.rpc.paging import after, cut, page_size
from foundation.store.unit_of_work import Store
from services.credentials.credential import renewing
from services.credentials.credential import store as queries
from services.credentials.credential.book import Book, Ref, Wish
from services.credentials.credential.checks import Field
from services.credentials.credential.cover import Cover
from services.credentials.credential.granting import GrantBook
from services.credentials.credential.wire import credential_message, grant_message, version_message
from services.credentials.leases.asking import PLUGIN_HOST
from tieline.credentials.v1 import credentials_pb2 as pb
from tieline.credentials.v1 import credentials_pb2_grpc

_NAME = "tenants/*/credentials/*"
_ANY = "-"
"""In place of a credential's id: those of all."""


class CredentialServicer(credentials_pb2_grpc.CredentialServiceServicer):
    def __init__(self, store: Store, book: Book, grants: GrantBook, cover: Cover, clock: Clock) -> None:
        self._store = store
        self._book = book
        self._grants = grants
        self._cover = cover
        self._clock = clock

    async def CreateCredential(self, request: pb.CreateCredentialRequest, context: Any) -> pb.Credential:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.parent, "parent")
        ref = Ref(tenant, new_id(request.credential_id, "credential_id"))
        wish = Wish(author=author(), request_id=request.request_id, validate_only=request.validate_only)
        return credential_message(await self._book.create(ref, request.credential, request.value, wish))

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Any) -> pb.Credential:  # noqa: ARG002, N802
        return credential_message(await self._book.read(_ref(request.name)))

    async def ListCredentials(  # noqa: N802
        self,
        request: pb.ListCredentialsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListCredentialsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        size = page_size(request.page_size)
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            rows = await queries.credentials(work, tenant, after(request.page_token), size + 1)
        page, token = cut(rows, size, lambda row: row.id)
        return pb.ListCredentialsResponse(credentials=map(credential_message, page), next_page_token=token)

    async def UpdateCredential(self, request: pb.UpdateCredentialRequest, context: Any) -> pb.Credential:  # noqa: ARG002, N802
        if not request.update_mask.paths:
            raise Field("update_mask").wrong("it names no field")
        ref = _ref(request.credential.name, "credential.name")
        paths = list(request.update_mask.paths)
        return credential_message(await self._book.update(ref, request.credential, paths))

    async def AddCredentialVersion(  # noqa: N802
        self,
        request: pb.AddCredentialVersionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.Credential:
        overlap = timedelta(0)
        if request.HasField("overlap"):
            overlap = renewing.given_duration(request.overlap, "overlap").ToTimedelta()
        wish = Wish(author=author(), request_id=request.request_id, validate_only=request.validate_only)
        return credential_message(
            await self._book.add_version(_ref(request.name), request.value, overlap, wish)
        )

    async def ListCredentialVersions(  # noqa: N802
        self,
        request: pb.ListCredentialVersionsRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListCredentialVersionsResponse:
        ref, size = _ref(request.parent, "parent"), page_size(request.page_size)
        before = _number(after(request.page_token))
        current = (await self._book.read(ref)).current_version
        async with self._store.unit_of_work(tenants=[ref.tenant], read_only=True) as work:
            rows = await queries.versions(work, ref.tenant, ref.id, before, size + 1)
        page, token = cut(rows, size, lambda row: str(row.version))
        now = self._clock.now()
        return pb.ListCredentialVersionsResponse(
            credential_versions=[version_message(row, current, now) for row in page], next_page_token=token
        )

    async def RotateCredential(self, request: pb.RotateCredentialRequest, context: Any) -> pb.Credential:  # noqa: ARG002, N802
        row = await self._book.rotate(_ref(request.name), request.current_version, author())
        return credential_message(row)

    async def RevokeCredential(self, request: pb.RevokeCredentialRequest, context: Any) -> pb.Credential:  # noqa: ARG002, N802
        reason = Field("reason")
        reason.one_line(request.reason)
        if len(request.reason.encode()) > 256:
            raise reason.wrong("it has more than 256 bytes")
        if request.version < 0:
            raise Field("version").wrong("it is negative")
        return credential_message(
            await self._book.revoke(_ref(request.name), request.version, request.reason)
        )

    async def DeleteCredential(self, request: pb.DeleteCredentialRequest, context: Any) -> Empty:  # noqa: ARG002, N802
        await self._book.delete(_ref(request.name), request.etag, force=request.force)
        return Empty()

    async def ValidateCredential(  # noqa: N802
        self,
        request: pb.ValidateCredentialRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ValidateCredentialResponse:
        row, found = await self._book.validate(_ref(request.name))
        return pb.ValidateCredentialResponse(
            credential=credential_message(row),
            granted_scopes=found.granted_scopes,
            missing_scopes=found.missing_scopes,
        )

    async def CreateGrant(self, request: pb.CreateGrantRequest, context: Any) -> pb.Grant:  # noqa: ARG002, N802
        return grant_message(await self._grants.create(_ref(request.parent, "parent"), request.grant))

    async def ListGrants(self, request: pb.ListGrantsRequest, context: Any) -> pb.ListGrantsResponse:  # noqa: ARG002, N802
        ref, size = _ref(request.parent, "parent"), page_size(request.page_size)
        id_ = "" if ref.id == _ANY else ref.id
        async with self._store.unit_of_work(tenants=[ref.tenant], read_only=True) as work:
            rows = await queries.grants(
                work,
                ref.tenant,
                id_,
                subject=request.connection,
                after=after(request.page_token),
                limit=size + 1,
            )
        page, token = cut(rows, size, lambda row: f"{row.credential}/{row.id}")
        return pb.ListGrantsResponse(grants=map(grant_message, page), next_page_token=token)

    async def DeleteGrant(self, request: pb.DeleteGrantRequest, context: Any) -> Empty:  # noqa: ARG002, N802
        tenant, credential, grant = parse(f"{_NAME}/grants/*", request.name, "name")
        await self._grants.delete(Ref(tenant, credential), grant)
        return Empty()

    async def EndGrants(self, request: pb.EndGrantsRequest, context: Any) -> pb.EndGrantsResponse:  # noqa: ARG002, N802
        if request.app:
            parse("apps/*", request.app, "app")
            (tenant,) = parse("tenants/*", request.app_owner, "app_owner")
        else:
            tenant, _ = parse("tenants/*/connections/*", request.connection, "connection")
        if caller().name != PLUGIN_HOST:
            raise Problem(Code.CALLER_KIND_REFUSED, method="EndGrants", kind=caller().name)
        kept = {(one.slot, one.entry, one.credential) for one in request.kept}
        subject = request.app or request.connection
        ended = await self._grants.end(tenant, subject, kept, request.settled.ToTimedelta())
        return pb.EndGrantsResponse(ended=ended)

    async def WatchCredentialStates(  # noqa: N802
        self,
        request: pb.WatchCredentialStatesRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[pb.WatchCredentialStatesResponse]:
        async for told in self._cover.tell():
            yield told


def _ref(name: str, field: str = "name") -> Ref:
    return Ref(*parse(_NAME, name, field))


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise Problem(Code.INVALID_ARGUMENT, field="page_token", why="it is not one that a page gave")
    return int(text)
