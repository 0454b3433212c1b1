"""TenantService: who there is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from foundation.errors import Code, Problem
from foundation.identity.names import new_id, parse
from foundation.rpc.paging import after, cut, page_size
from foundation.store.unit_of_work import Store
from services.credentials.identities.store import tenants as queries
from services.credentials.identities.store.tenants import TenantRow
from services.credentials.identities.tenant_picture import TenantPicture
from services.credentials.identities.tenants import TenantBook
from services.credentials.updates import made_from, masked
from tieline.credentials.v1 import tenants_pb2_grpc
from tieline.credentials.v1.tenants_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    GetTenantRequest,
    ListTenantsRequest,
    ListTenantsResponse,
    ResumeTenantRequest,
    SuspendTenantRequest,
    Tenant,
    UpdateTenantRequest,
    WatchTenantsRequest,
    WatchTenantsResponse,
)

ID = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")
LABELS, LABEL_BYTES = 32, 256
REASON_BYTES = 256


class TenantServicer(tenants_pb2_grpc.TenantServiceServicer):
    def __init__(self, store: Store, book: TenantBook, picture: TenantPicture) -> None:
        self._store = store
        self._book = book
        self._picture = picture

    async def CreateTenant(self, request: CreateTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        tenant = new_tenant_id(request.tenant_id, "tenant_id")
        wanted = TenantRow(
            id=tenant,
            title=request.tenant.title or tenant,
            labels=_labels(request.tenant.labels),
            request_id=request.request_id,
        )
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            created = await self._book.create(work, wanted)
            row = await queries.tenant(work, tenant)
        repeated = row is not None and request.request_id and row.request_id == request.request_id
        if row is None or not (created or repeated):
            raise Problem(Code.ALREADY_EXISTS, what=f"tenant {tenant}")
        self._picture.notice()
        return tenant_message(row)

    async def GetTenant(self, request: GetTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.name, "name")
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            row = await queries.tenant(work, tenant)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"tenant {tenant}")
        return tenant_message(row)

    async def ListTenants(self, request: ListTenantsRequest, context: Any) -> ListTenantsResponse:  # noqa: ARG002, N802
        size = page_size(request.page_size)
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            rows = await queries.tenants(
                work, after(request.page_token), size + 1, deleted=request.show_deleted
            )
        page, token = cut(rows, size, lambda row: row.id)
        return ListTenantsResponse(tenants=map(tenant_message, page), next_page_token=token)

    async def UpdateTenant(self, request: UpdateTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.tenant.name, "tenant.name")
        fields = masked(request.update_mask, {"title", "labels"})
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._book.locked(work, tenant)
            if row.directory:
                why = f"it is kept in the directory {row.directory}"
                raise Problem(Code.STATE_REFUSES, what=row.name, wanted="changed", why=why)
            made_from(request.tenant.etag, row.etag, "tenant.etag")
            if "title" in fields:
                row = replace(row, title=request.tenant.title or tenant)
            if "labels" in fields:
                row = replace(row, labels=_labels(request.tenant.labels))
            saved = await self._book.update(work, row, fields)
        self._picture.notice()
        return tenant_message(saved)

    async def SuspendTenant(self, request: SuspendTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.name, "name")
        if len(request.reason.encode()) > REASON_BYTES:
            why = f"it is longer than {REASON_BYTES} bytes"
            raise Problem(Code.INVALID_ARGUMENT, field="reason", why=why)
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._book.suspend(work, await self._book.locked(work, tenant), request.reason)
        self._picture.notice()
        return tenant_message(row)

    async def ResumeTenant(self, request: ResumeTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.name, "name")
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._book.resume(work, await self._book.locked(work, tenant))
        self._picture.notice()
        return tenant_message(row)

    async def DeleteTenant(self, request: DeleteTenantRequest, context: Any) -> Tenant:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.name, "name")
        if request.confirmation != request.name:
            why = f"write {request.name} once more: what is deleted cannot be brought back"
            raise Problem(Code.INVALID_ARGUMENT, field="confirmation", why=why)
        async with self._store.unit_of_work(tenants=[tenant]) as work:
            row = await self._book.locked(work, tenant)
            if row.state != "DELETED":
                made_from(request.etag, row.etag, "etag")
            row = await self._book.delete(work, row)
        self._picture.notice()
        return tenant_message(row)

    async def WatchTenants(  # noqa: N802
        self,
        request: WatchTenantsRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[WatchTenantsResponse]:
        async for snapshot in self._picture.watch():
            yield WatchTenantsResponse(
                tenants=map(tenant_message, snapshot.content.values()), generation=snapshot.generation
            )


def new_tenant_id(text: str, field: str) -> str:
    if not ID.fullmatch(new_id(text, field)):
        why = f"{text!r} is not 2 to 40 characters that end with a letter or a digit"
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=why)
    return text


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    if len(labels) > LABELS:
        raise Problem(Code.INVALID_ARGUMENT, field="tenant.labels", why=f"there are more than {LABELS}")
    if any(len(text.encode()) > LABEL_BYTES for pair in labels.items() for text in pair):
        why = f"one is longer than {LABEL_BYTES} bytes"
        raise Problem(Code.INVALID_ARGUMENT, field="tenant.labels", why=why)
    return dict(labels)


def tenant_message(row: TenantRow) -> Tenant:
    tenant = Tenant(
        name=row.name,
        title=row.title,
        state=Tenant.State.Value(f"STATE_{row.state}"),
        directory=row.directory,
        directory_id=row.directory_id,
        labels=row.labels,
        etag=row.etag,
    )
    for field, at in ((tenant.create_time, row.created_at), (tenant.update_time, row.updated_at)):
        if at is not None:
            field.FromDatetime(at)
    return tenant
