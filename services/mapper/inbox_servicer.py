"""InboxService on the wire."""

from __future__ import annotations

import asyncio
from typing import Any

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.rpc import paging
from services.mapper.inbox import Fenced, Inbox
from services.mapper.records import arrival_of, fence_of
from services.mapper.store.inbox import Backlog, PressureStore
from tieline.common.v1.delivery_pb2 import Priority
from tieline.mapper.v1 import inbox_pb2
from tieline.mapper.v1.inbox_pb2_grpc import InboxServiceServicer

MOST = 1000
HOLD_BULK = 50_000
"""With so many waiting in all, history can wait at its source."""


class InboxServicer(InboxServiceServicer):
    def __init__(self, inbox: Inbox, pressure: PressureStore, accepted: asyncio.Event, clock: Clock) -> None:
        self._clock = clock
        self.hold_bulk = HOLD_BULK
        self._inbox = inbox
        self._pressure = pressure
        self._accepted = accepted

    async def AcceptDeliveries(  # noqa: N802  the contract's name
        self, request: inbox_pb2.AcceptDeliveriesRequest, _: Any
    ) -> inbox_pb2.AcceptDeliveriesResponse:
        if len(request.deliveries) > MOST:
            raise Problem(Code.INVALID_ARGUMENT, field="deliveries", why=f"more than {MOST} in one call")
        outcomes = await self._inbox.accept(request.deliveries)
        self._accepted.set()
        return inbox_pb2.AcceptDeliveriesResponse(outcomes=outcomes)

    async def AcceptRecords(  # noqa: N802
        self, request: inbox_pb2.AcceptRecordsRequest, _: Any
    ) -> inbox_pb2.AcceptRecordsResponse:
        if len(request.records) > MOST:
            raise Problem(Code.INVALID_ARGUMENT, field="records", why=f"more than {MOST} in one call")
        fence, now = fence_of(request), self._clock.now()
        arrivals = [arrival_of(given, request, fence, now) for given in request.records]
        try:
            outcomes = await self._inbox.accept_arrivals(arrivals, fence)
        except Fenced:
            raise Problem(Code.CONFLICT, why="another poller has taken over") from None
        self._accepted.set()
        return inbox_pb2.AcceptRecordsResponse(outcomes=outcomes)

    async def ListBacklogs(  # noqa: N802
        self, request: inbox_pb2.ListBacklogsRequest, _: Any
    ) -> inbox_pb2.ListBacklogsResponse:
        size = paging.page_size(request.page_size)
        found = await self._pressure.backlogs(paging.after(request.page_token), size + 1)
        page, more = paging.cut(found, size, _connection)
        response = inbox_pb2.ListBacklogsResponse(next_page_token=more)
        for one in page:
            told = response.backlogs.add(
                connection=one.connection, waiting=one.waiting, dead_letters=one.dead
            )
            if one.oldest is not None:
                told.oldest_time.FromDatetime(one.oldest)
        return response

    async def GetInboxPressure(  # noqa: N802
        self, _: inbox_pb2.GetInboxPressureRequest, __: Any
    ) -> inbox_pb2.GetInboxPressureResponse:
        response = inbox_pb2.GetInboxPressureResponse()
        for priority, waiting, oldest in await self._pressure.waiting():
            lane = response.lanes.add(priority=Priority.ValueType(priority), waiting=waiting)
            lane.oldest.FromNanoseconds(int(oldest * 1e9))
        response.hold_bulk = sum(lane.waiting for lane in response.lanes) > self.hold_bulk
        return response


def _connection(backlog: Backlog) -> str:
    return backlog.connection
