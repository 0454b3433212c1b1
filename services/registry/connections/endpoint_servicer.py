from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from foundation.rpc.call import ServicerContext
from services.registry.connections.endpoints import app_endpoints, endpoints
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from tieline.registry.v1 import endpoints_pb2 as pb
from tieline.registry.v1 import endpoints_pb2_grpc

PART = 500


class EndpointServicer(endpoints_pb2_grpc.EndpointServiceServicer):
    def __init__(self, picture: Picture, host: Host) -> None:
        self._picture, self._host = picture, host

    async def WatchEndpoints(  # noqa: N802 - the contract's name
        self, _: pb.WatchEndpointsRequest, __: ServicerContext
    ) -> AsyncIterator[pb.WatchEndpointsResponse]:
        async for snapshot in self._picture.watch():
            found = [
                *endpoints(snapshot.content, self._host),
                *app_endpoints(self._picture.apps, snapshot.content, self._host),
            ]
            for part in parts(found, snapshot.generation):
                yield part


def parts(found: list[pb.Endpoint], generation: int) -> Iterator[pb.WatchEndpointsResponse]:
    """One picture in pieces that a message holds; an empty picture is a picture too."""
    for start in range(0, max(len(found), 1), PART):
        yield pb.WatchEndpointsResponse(
            endpoints=found[start : start + PART],
            generation=generation,
            more=start + PART < len(found),
        )
