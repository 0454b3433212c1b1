"""The broker as the mapper sees it: groups of inputs go in, a result for each comes out, or one failure for all."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import context as otel_context
from opentelemetry import propagate

from foundation.errors import Code, Problem
from foundation.rpc import Connection
from services.mapper.verdicts import Waiting
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, FAILURE_KIND_TRANSIENT, Failure
from tieline.mapper.v1.events_pb2 import Delivery as DeliveryMessage
from tieline.plugin.v1.transform_pb2 import TransformInput, TransformOutcome
from tieline.registry.v1.broker_pb2 import ConnectionRef, TransformDataRequest, TransformDataResponse
from tieline.registry.v1.broker_pb2_grpc import BrokerServiceStub

CALL_SECONDS = 30.0

Group = Sequence[Waiting]
"""Inputs of one connection, oldest first."""


class Broker:
    def __init__(self, registry: Connection) -> None:
        self._stub = BrokerServiceStub(registry)

    async def transform(self, groups: Sequence[Group]) -> list[TransformDataResponse.Result]:
        """A result for each group, in its order. Never raises a `Problem`: failing is one of the results."""
        try:
            response = await self._call(groups)
        except Problem as problem:
            if _is_too_large(problem):
                return await self._halves(groups)
            return [TransformDataResponse.Result(failure=_transient(problem))] * len(groups)
        if len(response.results) != len(groups):
            why = f"{len(response.results)} results came for {len(groups)} groups"
            failure = Failure(kind=FAILURE_KIND_TRANSIENT, reason="ANSWER_MALFORMED", message=why)
            return [TransformDataResponse.Result(failure=failure)] * len(groups)
        return list(response.results)

    async def _call(self, groups: Sequence[Group]) -> TransformDataResponse:
        request = TransformDataRequest(groups=map(_group, groups))
        # A call carries one trace context and many deliveries; it continues the trace of its oldest.
        carrier = {"traceparent": groups[0][0].traceparent}
        token = otel_context.attach(propagate.extract(carrier))
        try:
            return await self._stub.TransformData(request, timeout=CALL_SECONDS)
        finally:
            otel_context.detach(token)

    async def _halves(self, groups: Sequence[Group]) -> list[TransformDataResponse.Result]:
        """An answer was too large for one message. Only a single input is to blame for that."""
        if len(groups) > 1:
            middle = len(groups) // 2
            return [*await self.transform(groups[:middle]), *await self.transform(groups[middle:])]
        inputs = groups[0]
        if len(inputs) == 1:
            why = "what it becomes does not fit into one message"
            failure = Failure(kind=FAILURE_KIND_INVALID_INPUT, reason="RESULT_TOO_LARGE", message=why)
            return [TransformDataResponse.Result(failure=failure)]
        middle = len(inputs) // 2
        older, newer = await self.transform([inputs[:middle]]), await self.transform([inputs[middle:]])
        return [_joined(older[0], newer[0], inputs, middle)]


def _joined(
    older: TransformDataResponse.Result, newer: TransformDataResponse.Result, inputs: Group, middle: int
) -> TransformDataResponse.Result:
    return TransformDataResponse.Result(
        outcomes=[*_outcomes(older, inputs[:middle]), *_outcomes(newer, inputs[middle:])],
        plugin_version=older.plugin_version or newer.plugin_version,
        revision=older.revision or newer.revision,
    )


def _outcomes(result: TransformDataResponse.Result, inputs: Group) -> list[TransformOutcome]:
    if not result.HasField("failure"):
        return list(result.outcomes)
    return [TransformOutcome(input_id=str(waiting.id), failure=result.failure) for waiting in inputs]


def _group(inputs: Group) -> TransformDataRequest.Group:
    return TransformDataRequest.Group(
        ref=ConnectionRef(connection=inputs[0].connection), inputs=map(_input, inputs)
    )


def _input(waiting: Waiting) -> TransformInput:
    told = DeliveryMessage.FromString(waiting.headers)
    message = TransformInput(
        input_id=str(waiting.id),
        payload=waiting.body,
        content_type=waiting.content_type,
        headers=told.headers,
        event_type=waiting.event_type,
    )
    if told.HasField("record"):
        message.stream = waiting.channel
        message.key, message.version = told.record.key, told.record.version
        if told.record.partition:
            message.partition.id = told.record.partition
    else:
        message.webhook, message.key = waiting.channel, waiting.key
    message.received_at.FromDatetime(waiting.received_at)
    return message


def _is_too_large(problem: Problem) -> bool:
    return problem.code is Code.REMOTE_UNKNOWN and problem.data["status"] == "RESOURCE_EXHAUSTED"


def _transient(problem: Problem) -> Failure:
    return Failure(kind=FAILURE_KIND_TRANSIENT, reason=problem.code.name, message=problem.sentence[:1000])
