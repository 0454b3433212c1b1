"""What the broker costs for each event: microseconds, by the size of a call.

The control is the same call straight to the plugin's socket, so it holds all that the plugin itself does. `broker`
is the broker inside its own process; `registry` is asked over gRPC with a token, as the mapper asks it. Calls go
one after the other; client, registry and plugin share this machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
from joserfc.jwk import OKPKey
from opentelemetry import trace

from bench.kit.github import ONE, group, hosted, pushes
from bench.kit.measure import Line
from foundation.clock import RandomIds, SystemClock
from foundation.identity import Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.rpc import RpcServer, connect
from foundation.settings import Address
from foundation.telemetry import Metrics
from services.registry.broker.broker import Broker
from services.registry.broker.preparing import context
from services.registry.broker.servicer import BrokerServicer
from services.registry.broker.serving import FixedConnections
from tieline.plugin.v1.transform_pb2 import TransformDataRequest, TransformGroup, TransformInput
from tieline.registry.v1 import broker_pb2, broker_pb2_grpc

SIZES = (1, 10, 100)
REPETITIONS, EVENTS = 7, 1000
KEY = OKPKey.generate_key("Ed25519")
MAPPER = Principal(Kind.SERVICE, "services/mapper", platform_roles=frozenset({Role.SERVICE}))
Call = Callable[[list[TransformInput]], Awaitable[int]]
"""Has inputs transformed; answers how many outcomes came."""


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


def run() -> list[Line]:
    return asyncio.run(_measure())


async def _measure() -> list[Line]:
    inputs = pushes(EVENTS)
    taken: dict[str, list[float]] = {}
    async with _ways() as ways:
        for size in SIZES:
            for call in ways.values():  # what is done once is done before
                await _seconds(call, inputs[: 10 * size], size)
            for _ in range(REPETITIONS):
                for what, call in ways.items():
                    some = inputs[: max(100, 10 * size)]
                    seconds = await _seconds(call, some, size)
                    taken.setdefault(f"{what}, calls of {size}", []).append(seconds / len(some) * 1e6)
    return [Line(what, values, "us/event") for what, values in taken.items()]


async def _seconds(call: Call, inputs: list[TransformInput], size: int) -> float:
    began = time.perf_counter()
    for start in range(0, len(inputs), size):
        some = inputs[start : start + size]
        assert await call(some) == len(some)
    return time.perf_counter() - began


@asynccontextmanager
async def _ways() -> AsyncIterator[Mapping[str, Call]]:
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(hosted())
        broker = Broker(host, FixedConnections(ONE))
        process = host.processes["github"]
        async with process.call(30.0) as launch:
            assert await broker.initialize(ONE) is None
            stub = launch.stub
        channel = await stack.enter_async_context(_registry(broker))
        yield {
            "control, the plugin's socket": partial(_straight, stub),
            "broker": partial(_broker, broker),
            "registry": partial(_over_grpc, broker_pb2_grpc.BrokerServiceStub(channel)),
        }


async def _straight(stub: Any, inputs: list[TransformInput]) -> int:
    group = TransformGroup(context=context(ONE), inputs=inputs)
    answer = await stub.TransformData(TransformDataRequest(groups=[group]), timeout=10.0)
    return len(answer.results[0].outcomes)


async def _broker(broker: Broker, inputs: list[TransformInput]) -> int:
    [result] = await broker.transform([group(inputs)])
    return len(result.outcomes)


async def _over_grpc(stub: Any, inputs: list[TransformInput]) -> int:
    request = broker_pb2.TransformDataRequest(groups=[group(inputs)])
    return len((await stub.TransformData(request, timeout=10.0)).results[0].outcomes)


@asynccontextmanager
async def _registry(broker: Broker) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("registry"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0.1,
    )
    server.add(broker_pb2_grpc.add_BrokerServiceServicer_to_server, BrokerServicer(broker))
    signed = TokenSigner(KEY, SystemClock()).sign(MAPPER, timedelta(minutes=30))

    async def token() -> str:
        return signed

    async with server, connect(str(server.address), token) as channel:
        yield channel
