"""EventService on the wire."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc.paging import page_size
from foundation.rpc.times import moment
from services.mapper.names import parse_uuid
from services.mapper.pages import Page
from services.mapper.store.events import EventStore, Wanted
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1 import events_pb2
from tieline.mapper.v1.events_pb2_grpc import EventServiceServicer


class EventServicer(EventServiceServicer):
    def __init__(self, events: EventStore, clock: Clock) -> None:
        self._events = events
        self._clock = clock

    async def GetEvent(self, request: events_pb2.GetEventRequest, _: Any) -> Event:  # noqa: N802
        tenant, identity = parse_uuid("tenants/*/events/*", request.name, "event")
        content = await self._events.get(tenant, identity)
        if content is None:
            raise Problem(Code.NOT_FOUND, what=f"event {request.name}")
        return Event.FromString(content)

    async def ListEvents(  # noqa: N802
        self, request: events_pb2.ListEventsRequest, _: Any
    ) -> events_pb2.ListEventsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        _check_times(request)
        page, most = Page.of(request, self._clock.now()), page_size(request.page_size)
        # One more than the page holds tells whether there is a next one.
        found = await self._events.list(tenant, _wanted(request), page.cut, page.before, most + 1)
        response = events_pb2.ListEventsResponse(
            events=[Event.FromString(content) for _, content in found[:most]]
        )
        if len(found) > most:
            response.next_page_token = page.next(found[most - 1][0], request)
        return response

    async def GetDelivery(  # noqa: N802
        self, request: events_pb2.GetDeliveryRequest, _: Any
    ) -> events_pb2.Delivery:
        tenant, identity = parse_uuid("tenants/*/deliveries/*", request.name, "delivery")
        row = await self._events.original(tenant, identity)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"delivery {request.name}")
        delivery = events_pb2.Delivery.FromString(row.headers)
        delivery.name = request.name
        for field in ("connection", "channel", "key", "body", "content_type", "sha256"):
            setattr(delivery, field, getattr(row, field))
        delivery.received_at.FromDatetime(row.received_at)
        if delivery.HasField("record"):
            delivery.key = delivery.record.key
        return delivery


def _wanted(request: events_pb2.ListEventsRequest) -> Wanted:
    if request.text:
        raise Problem(Code.INVALID_ARGUMENT, field="text", why="words are not searched for yet")
    texts = [*request.types, request.connection, *(part for e in request.entities for part in (e.kind, e.id))]
    if any("\0" in given for given in texts):
        raise Problem(Code.INVALID_ARGUMENT, field="types, connection or entities", why="it holds a NUL")
    return Wanted(
        start=request.start_time.ToDatetime(UTC) if request.HasField("start_time") else None,
        categories=request.categories,
        types=request.types,
        severity=request.min_severity,
        connection=request.connection,
        entities=[(entity.kind, entity.id) for entity in request.entities],
    )


def _check_times(request: events_pb2.ListEventsRequest) -> None:
    for field in ("start_time", "end_time"):
        moment(getattr(request, field), field)
