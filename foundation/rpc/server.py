"""A gRPC server that serves only methods which say who may call them, and drains before it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH, SERVICE_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from foundation.clock import Ids
from foundation.errors import Code, Problem
from foundation.identity import Authenticator, Method, describe_method
from foundation.rpc import layers, options
from foundation.rpc.call import Call, Layer, ServicerContext, Unreadable
from foundation.rpc.deadline import deadline
from foundation.settings import Address
from foundation.telemetry import Metrics, Readiness

Servicer = TypeVar("Servicer")
AddServicer = Callable[[Servicer, grpc.aio.Server], None]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """Add servicers, then `async with` it: it serves inside the block and drains at its end."""

    def __init__(
        self,
        address: Address,
        *,
        authenticator: Authenticator,
        metrics: Metrics,
        tracer: trace.Tracer,
        ids: Ids,
        drain: float,
    ) -> None:
        self._wanted = address
        self._drain = drain
        self._methods: dict[str, Method] = {}
        self._services: list[str] = []
        self._layers: tuple[Layer, ...] = (
            layers.measured(metrics),
            layers.traced(tracer),
            layers.truthful(metrics, ids),
            deadline,
            layers.understood,
            layers.identified(authenticator),
            layers.recorded(),
        )
        self._server = grpc.aio.server(options=options.SERVER)
        self._health = health.HealthServicer()
        self.address = address

    def add(self, add_servicer: AddServicer[Servicer], servicer: Servicer) -> None:
        """Serve a servicer, given the generated function that registers it.

        Raises ValueError, naming the method, if any of its methods has no rule.
        """
        add_servicer(servicer, _Registrar(self))  # type: ignore[arg-type]  # it has what registration uses

    def register(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        descriptor: ServiceDescriptor = descriptor_pool.Default().FindServiceByName(service)
        methods = {method.name: describe_method(method) for method in descriptor.methods}
        wrapped = {name: _wrap(methods[name], self._layers, handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._methods.update({method.path: method for method in methods.values()})
        self._services.append(service)

    async def set_ready(self, ready: bool) -> None:  # noqa: FBT001 - the state is the subject
        """Tell whoever watches `grpc.health.v1`, for the process and for each of its services."""
        for service in (OVERALL_HEALTH, *self._services):
            await self._health.set(service, SERVING if ready else NOT_SERVING)

    async def __aenter__(self) -> Self:
        # Health and reflection are not ours to annotate. They reveal the contract, which is public, and
        # whether a process serves; they change nothing. They are the only methods without a rule.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._services, SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        await self.set_ready(ready=False)
        try:
            port = self._server.add_insecure_port(str(self._wanted))
        except RuntimeError as error:
            raise Problem(
                Code.ADDRESS_IN_USE,
                address=self._wanted,
                why="it is in use or not an address of this machine",
                option="the `listen` setting",
            ) from error
        self.address = Address(self._wanted.host, port)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Say we are going, take nothing new, let what is under way finish, then end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._drain)


class _Registrar:
    """Stands where generated code expects a server, so that no servicer comes past the rules."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _: Sequence[object]) -> None:
        """Generated code registers everything twice; the named registration below carries all of it."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self._server.register(service, handlers)


def _wrap(
    method: Method, around: tuple[Layer, ...], handler: grpc.RpcMethodHandler[Any, Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour: Any = handler.unary_stream if method.streams else handler.unary_unary

    async def answer(request: Any, context: ServicerContext) -> Any:
        async with layers.around(around, Call(method, request, context)):
            return await behaviour(request, context)

    async def stream(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
        async with layers.around(around, Call(method, request, context)):
            async for message in behaviour(request, context):
                yield message

    make: Any = (
        grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
    )
    wrapped: grpc.RpcMethodHandler[Any, Any] = make(
        stream if method.streams else answer,
        request_deserializer=_reading(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )
    return wrapped


def _reading(deserialise: Any) -> Callable[[bytes], Any]:
    """Garbage goes to the layers too: gRPC itself would log a traceback for whoever sends it."""

    def read(raw: bytes) -> Any:
        try:
            return deserialise(raw)
        except DecodeError:
            return Unreadable()

    return read


async def follow_readiness(server: RpcServer, readiness: Readiness) -> None:
    """Keep `grpc.health.v1` in step with what the process's dependencies answer; runs until cancelled.

    Looks often until the process is ready for the first time, since others wait for that, then calmly.
    """
    ready = False
    while True:
        ready = (await readiness.report()).ready
        await server.set_ready(ready)
        await asyncio.sleep(1.0 if ready else 0.1)
