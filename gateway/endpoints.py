"""All endpoints, as the registry tells them: held in memory, so that no delivery asks anybody anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from grpc.aio import Channel

from foundation.clock.tasks import end
from foundation.errors import Code, Problem
from foundation.rpc import follow
from foundation.rpc.streams import Answers
from tieline.registry.v1 import endpoints_pb2_grpc
from tieline.registry.v1.endpoints_pb2 import Endpoint, WatchEndpointsRequest, WatchEndpointsResponse


class Endpoints:
    """`async with Endpoints(channel) as endpoints`: the last whole picture, kept through every outage."""

    def __init__(self, registry: Channel) -> None:
        self._stub = endpoints_pb2_grpc.EndpointServiceStub(registry)
        self._picture: Mapping[str, Endpoint] | None = None
        self._parts: dict[str, Endpoint] = {}
        self._task: asyncio.Task[None] | None = None

    def get(self, name: str) -> Endpoint | None:
        if self._picture is None:
            raise self._unknown()
        return self._picture.get(name)

    async def check(self) -> None:
        """For readiness: before the first picture nothing can be told from nothing."""
        if self._picture is None:
            raise self._unknown()

    @staticmethod
    def _unknown() -> Problem:
        why = "the endpoints are not known yet"
        return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="registry", why=why)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(follow("endpoints", self._open, self._take), name="follow endpoints")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    def _open(self) -> Answers[WatchEndpointsResponse]:
        self._parts = {}  # of a picture that was cut off
        return self._stub.WatchEndpoints(WatchEndpointsRequest())

    def _take(self, message: WatchEndpointsResponse) -> None:
        """Whole pictures only: parts of one are put together first."""
        self._parts.update((endpoint.endpoint, endpoint) for endpoint in message.endpoints)
        if not message.more:
            self._picture, self._parts = self._parts, {}
