"""BrokerService on the wire: answers, failures with their effect, and who leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc.aio import AioRpcError
from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.errors import Problem
from foundation.identity import TokenVerifier
from foundation.process.testing import until
from foundation.rpc import RpcServer, connect
from foundation.rpc.streams import streaming
from foundation.settings import Address
from foundation.telemetry import Metrics
from services.registry.broker import failures
from services.registry.broker.broker import Broker
from services.registry.broker.servicer import BrokerServicer
from tests.services.registry.asked import asking, connected
from tests.services.registry.conftest import GATEWAY, OneKey, token_for
from tests.services.registry.raw import calls, ref
from tieline.common.v1.failure_pb2 import Effect, Failure
from tieline.plugin.v1.execute_pb2 import ExecuteRequest
from tieline.plugin.v1.fetch_pb2 import FetchDataRequest
from tieline.registry.v1 import broker_pb2 as pb
from tieline.registry.v1 import broker_pb2_grpc

ONE = connected(1, "slow")


@asynccontextmanager
async def wired(broker: Broker) -> AsyncIterator[broker_pb2_grpc.BrokerServiceAsyncStub]:
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("broker"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0.1,
    )
    server.add(broker_pb2_grpc.add_BrokerServiceServicer_to_server, BrokerServicer(broker))

    async def token() -> str:
        return token_for(GATEWAY)

    async with server, connect(str(server.address), token) as channel:
        stub: broker_pb2_grpc.BrokerServiceAsyncStub = broker_pb2_grpc.BrokerServiceStub(channel)
        yield stub


def told(problem: BaseException) -> Failure:
    """What travelled beside the status."""
    assert isinstance(problem.__cause__, AioRpcError)
    return failures.of_call(problem.__cause__)


def wanted(how: str, key: str) -> pb.ExecuteRequest:
    request = ExecuteRequest(action="write", idempotency_key=key, arguments=f'{{"how": "{how}"}}'.encode())
    return pb.ExecuteRequest(ref=ref(ONE), request=request)


async def test_a_failure_arrives_with_what_it_may_have_changed(tmp_path: Path) -> None:
    async with asking(tmp_path, ONE) as (broker, _), wired(broker) as stub:
        answer = await stub.Execute(wanted("well", "a"), timeout=60)
        assert answer.response.output == b'{"id": 7}'
        for how, reason, effect in [
            ("wrong", "OUTPUT_INVALID", Effect.EFFECT_APPLIED),
            ("die", "PLUGIN_CRASHED", Effect.EFFECT_UNKNOWN),
            ("conflict", "MOVED", Effect.EFFECT_NONE),
        ]:
            with pytest.raises(Problem) as failed:
                await stub.Execute(wanted(how, how), timeout=60)
            failure = told(failed.value)
            assert (failure.reason, failure.effect) == (reason, effect)
    assert len(calls(tmp_path, "Execute")) == 4


async def test_a_poll_streams_and_who_leaves_ends_it_in_the_plugin(tmp_path: Path) -> None:
    request = pb.FetchDataRequest(ref=ref(ONE), request=FetchDataRequest(stream="items"))
    async with asking(tmp_path, ONE) as (broker, host), wired(broker) as stub:
        frames = [frame async for frame in stub.FetchData(request, timeout=60)]
        assert [frame.response.WhichOneof("frame") for frame in frames[-2:]] == ["records", "end"]
        async with streaming(stub.FetchData(request, timeout=60)) as answers:
            await anext(answers)
        await until(lambda: calls(tmp_path, "cancelled"))
        await until(lambda: not host.processes["asked"].calls_in_flight)
        request.request.stream = "unheard-of"
        with pytest.raises(Problem) as failed:
            await anext(aiter(stub.FetchData(request, timeout=60)))
    assert told(failed.value).reason == "STREAM_UNKNOWN"
