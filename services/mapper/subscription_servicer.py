"""SubscriptionService on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import new_id, parse, tenant_of
from foundation.rpc.times import moment
from services.mapper import filters
from services.mapper.bus import Bus
from services.mapper.feed import Feed, Start
from services.mapper.names import subscription_name
from services.mapper.store.subscriptions import Subscribed, SubscriptionStore
from services.mapper.telling import Teller, Unbounded, Window, number_of
from tieline.mapper.v1 import subscriptions_pb2
from tieline.mapper.v1.subscriptions_pb2 import EventFilter, Subscription
from tieline.mapper.v1.subscriptions_pb2_grpc import SubscriptionServiceServicer

UNACKNOWLEDGED = 1000
MOST_UNACKNOWLEDGED = 10_000
_NAME = "tenants/*/subscriptions/*"


class SubscriptionServicer(SubscriptionServiceServicer):
    def __init__(
        self, subscriptions: SubscriptionStore, bus: Bus, clock: Clock, stopping: asyncio.Event
    ) -> None:
        self._subscriptions = subscriptions
        self._bus = bus
        self._clock = clock
        self._stopping = stopping

    async def CreateSubscription(  # noqa: N802
        self, request: subscriptions_pb2.CreateSubscriptionRequest, _: Any
    ) -> Subscription:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        identity = new_id(request.subscription_id, "subscription_id")
        wanted = request.subscription
        _check(wanted)
        if request.validate_only:
            wished = wanted.filter.SerializeToString()
            return _shown(Subscribed(tenant, identity, wanted.title, wished, "", self._clock.now(), 0))
        created = await self._subscriptions.create(
            tenant,
            identity,
            title=wanted.title,
            filter_=wanted.filter.SerializeToString(deterministic=True),
            request_id=request.request_id,
            number=await self._bus.last_number(),
        )
        subscribed = await self._get(tenant, identity)
        # The same request again is answered as the first one was.
        if not created and not (request.request_id and subscribed.request_id == request.request_id):
            raise Problem(Code.ALREADY_EXISTS, what=f"subscription {identity}")
        return _shown(subscribed)

    async def GetSubscription(  # noqa: N802
        self, request: subscriptions_pb2.GetSubscriptionRequest, _: Any
    ) -> Subscription:
        return _shown(await self._get(*parse(_NAME, request.name, "name")))

    async def Subscribe(  # noqa: N802
        self, request: subscriptions_pb2.SubscribeRequest, _: Any
    ) -> AsyncIterator[subscriptions_pb2.SubscribeResponse]:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        if request.subscription:
            teller, start = await self._with_cursor(tenant, request)
        else:
            teller, start = await self._without(request)
        async with aclosing(teller.tell(tenant, start)) as responses:
            async for response in responses:
                yield response
        raise Problem(Code.SHUTTING_DOWN, service="mapper")

    async def AcknowledgeEvents(  # noqa: N802
        self, request: subscriptions_pb2.AcknowledgeEventsRequest, _: Any
    ) -> subscriptions_pb2.AcknowledgeEventsResponse:
        tenant, identity = parse(_NAME, request.name, "name")
        if not await self._subscriptions.move(tenant, identity, number_of(request.ack_token)):
            raise Problem(Code.NOT_FOUND, what=f"subscription {request.name}")
        return subscriptions_pb2.AcknowledgeEventsResponse()

    async def _with_cursor(
        self, tenant: str, request: subscriptions_pb2.SubscribeRequest
    ) -> tuple[Teller, Start]:
        # The rule of this method has looked at the parent only; the cursor must be that tenant's too.
        if tenant_of(request.subscription) != tenant:
            raise Problem(Code.TENANT_FOREIGN, tenant=tenant_of(request.subscription) or request.subscription)
        _, identity = parse(_NAME, request.subscription, "subscription")
        subscribed = await self._get(tenant, identity)
        most = min(request.max_unacknowledged or UNACKNOWLEDGED, MOST_UNACKNOWLEDGED)
        if most < 1:
            raise Problem(Code.INVALID_ARGUMENT, field="max_unacknowledged", why="it is negative")

        async def cursor() -> int:
            return (await self._get(tenant, identity)).number

        wanted = EventFilter.FromString(subscribed.filter)
        teller = Teller(Feed(self._bus, self._stopping), wanted, Window(most, cursor), self._clock)
        return teller, Start(after=subscribed.number)

    async def _without(self, request: subscriptions_pb2.SubscribeRequest) -> tuple[Teller, Start]:
        filters.check(request.filter, "filter")
        teller = Teller(Feed(self._bus, self._stopping), request.filter, Unbounded(), self._clock)
        if request.HasField("start_time"):
            return teller, Start(since=moment(request.start_time, "start_time"))
        return teller, Start(after=await self._bus.last_number())

    async def _get(self, tenant: str, identity: str) -> Subscribed:
        found = await self._subscriptions.get(tenant, identity)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"subscription {subscription_name(tenant, identity)}")
        return found


def _check(wanted: Subscription) -> None:
    if wanted.WhichOneof("target") in ("bus", "push"):
        raise Problem(Code.INVALID_ARGUMENT, field="subscription.target", why="only streams are served yet")
    if "\0" in wanted.title or len(wanted.title.encode()) > 256:
        raise Problem(Code.INVALID_ARGUMENT, field="subscription.title", why="more than 256 bytes, or a NUL")
    filters.check(wanted.filter, "subscription.filter")


def _shown(subscribed: Subscribed) -> Subscription:
    shown = Subscription(
        name=subscription_name(subscribed.tenant, subscribed.id),
        title=subscribed.title,
        filter=EventFilter.FromString(subscribed.filter),
        stream=Subscription.Stream(),
        etag="1",
    )
    shown.create_time.FromDatetime(subscribed.created_at)
    return shown
