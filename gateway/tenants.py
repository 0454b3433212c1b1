"""Which tenants are not served at the moment, as the credentials service tells it: held in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from grpc.aio import Channel

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.identity.names import tenant_of
from foundation.rpc import follow
from tieline.credentials.v1 import tenants_pb2_grpc
from tieline.credentials.v1.tenants_pb2 import Tenant, WatchTenantsRequest, WatchTenantsResponse


class Tenants:
    """`async with Tenants(channel) as tenants`: the last picture, kept through every outage."""

    def __init__(self, credentials: Channel) -> None:
        self._stub = tenants_pb2_grpc.TenantServiceStub(credentials)
        self._refused: Mapping[str, str] | None = None
        self._seen: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def refusal(self, tenant: str) -> str:
        """Why it is not served; empty where it is. One that was never told of is too new to be suspended."""
        if self._refused is None:
            raise self._unknown()
        return self._refused.get(tenant, "")

    async def check(self) -> None:
        """For readiness: before the first picture a suspended tenant would look like any other."""
        if self._refused is None:
            raise self._unknown()

    @staticmethod
    def _unknown() -> Problem:
        why = "the tenants are not known yet"
        return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="credentials", why=why)

    async def __aenter__(self) -> Self:
        following = follow("tenants", lambda: self._stub.WatchTenants(WatchTenantsRequest()), self._take)
        self._task = asyncio.create_task(following, name="follow tenants")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    def _take(self, picture: WatchTenantsResponse) -> None:
        told = {tenant_of(tenant.name): tenant for tenant in picture.tenants}
        gone = dict.fromkeys(self._seen.difference(told), "it is deleted")
        suspended = {
            name: "it is suspended" for name, tenant in told.items() if tenant.state != Tenant.STATE_ACTIVE
        }
        self._refused = gone | suspended
        self._seen |= told.keys()
