from __future__ import annotations

from foundation.errors import Code, Problem
from foundation.rpc.call import ServicerContext
from foundation.rpc.deadline import budget
from services.registry.broker.broker import TRANSFORM_SECONDS, Broker
from tieline.registry.v1 import broker_pb2 as pb
from tieline.registry.v1 import broker_pb2_grpc

INPUTS = 2000


class BrokerServicer(broker_pb2_grpc.BrokerServiceServicer):
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def TransformData(  # noqa: N802 - the contract's name
        self,
        request: pb.TransformDataRequest,
        _: ServicerContext,
    ) -> pb.TransformDataResponse:
        if sum(len(group.inputs) for group in request.groups) > INPUTS:
            raise Problem(Code.INVALID_ARGUMENT, field="groups", why=f"there are more than {INPUTS} inputs")
        results = await self._broker.transform(request.groups, budget(TRANSFORM_SECONDS))
        return pb.TransformDataResponse(results=results)
