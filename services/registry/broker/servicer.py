from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from foundation.errors import Code, Problem
from foundation.rpc.call import ServicerContext
from foundation.rpc.deadline import budget
from services.registry.broker.broker import TRANSFORM_SECONDS, Broker
from services.registry.broker.executing import LONGEST_SECONDS, OUTCOME_SECONDS
from services.registry.broker.fetching import FETCH_SECONDS, LIST_SECONDS
from services.registry.broker.telling import telling
from services.registry.broker.verifying import VERIFY_SECONDS
from tieline.plugin.v1.fetch_pb2 import ListPartitionsRequest
from tieline.registry.v1 import broker_pb2 as pb
from tieline.registry.v1 import broker_pb2_grpc

# ruff: noqa: N802  the contract's names

INPUTS = 2000
LOOKUP_SECONDS = 30.0


class BrokerServicer(broker_pb2_grpc.BrokerServiceServicer):
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def TransformData(
        self,
        request: pb.TransformDataRequest,
        _: ServicerContext,
    ) -> pb.TransformDataResponse:
        if sum(len(group.inputs) for group in request.groups) > INPUTS:
            raise Problem(Code.INVALID_ARGUMENT, field="groups", why=f"there are more than {INPUTS} inputs")
        results = await self._broker.transform(request.groups, budget(TRANSFORM_SECONDS))
        return pb.TransformDataResponse(results=results)

    async def Lookup(self, request: pb.LookupRequest, _: ServicerContext) -> pb.LookupResponse:
        results = await self._broker.looking.look(request.groups, budget(LOOKUP_SECONDS))
        return pb.LookupResponse(results=results)

    async def VerifyWebhook(
        self, request: pb.VerifyWebhookRequest, _: ServicerContext
    ) -> pb.VerifyWebhookResponse:
        within = budget(VERIFY_SECONDS)
        response = await self._broker.verifying.verify(request.ref, request.request, within)
        return pb.VerifyWebhookResponse(response=response)

    async def FetchData(
        self, request: pb.FetchDataRequest, context: ServicerContext
    ) -> AsyncIterator[pb.FetchDataResponse]:
        frames = self._broker.fetching.fetch(request.ref, request.request, budget(FETCH_SECONDS))
        async with telling(context), aclosing(frames):
            async for frame in frames:
                yield pb.FetchDataResponse(response=frame)

    async def ListPartitions(
        self, request: pb.ListPartitionsRequest, context: ServicerContext
    ) -> pb.ListPartitionsResponse:
        wanted = ListPartitionsRequest(
            stream=request.stream, page_size=request.page_size, page_token=request.page_token
        )
        async with telling(context):
            page = await self._broker.fetching.partitions(request.ref, wanted, budget(LIST_SECONDS))
        return pb.ListPartitionsResponse(
            partitions=page.partitions, broken=page.broken, next_page_token=page.next_page_token
        )

    async def Execute(self, request: pb.ExecuteRequest, context: ServicerContext) -> pb.ExecuteResponse:
        within = budget(LONGEST_SECONDS)
        async with telling(context):
            response = await self._broker.executing.execute(request.ref, request.request, within)
        return pb.ExecuteResponse(response=response)

    async def GetOperationOutcome(
        self, request: pb.GetOperationOutcomeRequest, context: ServicerContext
    ) -> pb.GetOperationOutcomeResponse:
        within = budget(OUTCOME_SECONDS)
        async with telling(context):
            response = await self._broker.executing.outcome(request.ref, request.request, within)
        return pb.GetOperationOutcomeResponse(response=response)
