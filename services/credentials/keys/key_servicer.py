"""KeyService: how keys stand, and how they are changed. No key is ever shown."""

from __future__ import annotations

from typing import Any

from foundation.identity.names import parse
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.rotation import KeyRotation, TenantKeys
from services.credentials.keys.store.tenant_keys import TenantKeyRow
from tieline.credentials.v1 import keys_pb2_grpc
from tieline.credentials.v1.keys_pb2 import (
    GetRootKeyRequest,
    GetTenantKeyRequest,
    RetireTenantKeyVersionsRequest,
    RootKey,
    RotateRootKeyRequest,
    RotateTenantKeyRequest,
    TenantKey,
)

_NAME = "tenants/*/key"


class KeyServicer(keys_pb2_grpc.KeyServiceServicer):
    def __init__(self, tenants: KeyRotation, root: RootRotation) -> None:
        self._tenants = tenants
        self._root = root

    async def GetTenantKey(self, request: GetTenantKeyRequest, context: Any) -> TenantKey:  # noqa: ARG002, N802
        (tenant,) = parse(_NAME, request.name, "name")
        return _tenant_key(await self._tenants.read(tenant))

    async def RotateTenantKey(self, request: RotateTenantKeyRequest, context: Any) -> TenantKey:  # noqa: ARG002, N802
        (tenant,) = parse(_NAME, request.name, "name")
        return _tenant_key(await self._tenants.rotate(tenant, request.etag))

    async def RetireTenantKeyVersions(  # noqa: N802
        self,
        request: RetireTenantKeyVersionsRequest,
        context: Any,  # noqa: ARG002
    ) -> TenantKey:
        (tenant,) = parse(_NAME, request.name, "name")
        return _tenant_key(await self._tenants.retire(tenant, request.before_version))

    async def GetRootKey(self, request: GetRootKeyRequest, context: Any) -> RootKey:  # noqa: ARG002, N802
        return await self._root_key()

    async def RotateRootKey(self, request: RotateRootKeyRequest, context: Any) -> RootKey:  # noqa: ARG002, N802
        await self._root.copy_to(request.staged_fingerprint)
        return await self._root_key()

    async def _root_key(self) -> RootKey:
        standing = await self._root.standing()
        return RootKey(
            keeper=standing.keeper,
            fingerprint=standing.current,
            staged_fingerprint=standing.staged,
            previous_fingerprint=standing.previous,
            tenants_done=standing.done,
            tenants_total=standing.total,
            etag=f"{standing.current}.{standing.staged}.{standing.previous}",
        )


def _tenant_key(keys: TenantKeys) -> TenantKey:
    key = TenantKey(name=f"tenants/{keys.tenant}/key", etag=keys.etag)
    for row in keys.versions:
        version = key.versions.add(
            version=row.version, state=_state(row, keys.newest), data_keys=keys.data_keys.get(row.version, 0)
        )
        version.create_time.FromDatetime(row.created_at)
    if keys.since is not None:
        key.rewrap.done = keys.data_keys.get(keys.newest, 0)
        key.rewrap.total = keys.total
        key.rewrap.start_time.FromDatetime(keys.since)
    return key


def _state(row: TenantKeyRow, newest: int) -> TenantKey.State.ValueType:
    if row.sealed is None:
        return TenantKey.STATE_DESTROYED
    return TenantKey.STATE_CURRENT if row.version == newest else TenantKey.STATE_PREVIOUS
