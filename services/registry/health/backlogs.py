"""What the mapper has of each connection."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC

from foundation.rpc import Connection
from services.registry.health.status import Backlog
from tieline.mapper.v1.inbox_pb2 import ListBacklogsRequest
from tieline.mapper.v1.inbox_pb2_grpc import InboxServiceStub

PAGE = 1000
PAGES = 100
"""Of more connections than this nobody wants to hear that they all wait."""


class MapperBacklogs:
    def __init__(self, mapper: Connection) -> None:
        self._stub = InboxServiceStub(mapper)

    async def __call__(self) -> Mapping[str, Backlog]:
        """Raises the mapper's problem where it does not answer."""
        found: dict[str, Backlog] = {}
        request = ListBacklogsRequest(page_size=PAGE)
        for _ in range(PAGES):
            answer = await self._stub.ListBacklogs(request)
            for one in answer.backlogs:
                oldest = one.oldest_time.ToDatetime(UTC) if one.HasField("oldest_time") else None
                found[one.connection] = Backlog(one.waiting, oldest, one.dead_letters)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        return found
