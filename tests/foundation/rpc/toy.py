"""A small contract made on the spot, with one method for each thing the kit must do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from tieline.common.v1 import options_pb2 as contract

FILE = "tieline_test/toy.proto"
SERVICE = "tieline_test.ToyService"
BARE = "tieline_test.BareService"


def _method(
    name: str, scope: int, *, roles: tuple[int, ...] = (), field: str = "", retry: int = 1, **more: Any
) -> descriptor_pb2.MethodDescriptorProto:
    method = descriptor_pb2.MethodDescriptorProto(
        name=name, input_type=".tieline_test.Question", output_type=".tieline_test.Answer", **more
    )
    rule = method.options.Extensions[contract.rule]
    rule.scope = scope  # type: ignore[assignment]  # plain numbers are what a broken proto has
    rule.roles.extend(roles)  # type: ignore[arg-type]
    rule.tenant_field = field
    method.options.Extensions[contract.retry] = retry  # type: ignore[misc]
    return method


def _define() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name=FILE, package="tieline_test", syntax="proto3", dependency=["tieline/common/v1/options.proto"]
    )
    question = file.message_type.add(name="Question")
    question.field.add(name="tenant", number=1, type=9, label=1)
    question.field.add(name="password", number=2, type=9, label=1).options.Extensions[contract.sensitive] = (
        True
    )
    question.field.add(name="parts", number=3, type=11, type_name=".tieline_test.Question", label=3)
    question.field.add(name="body", number=4, type=12, label=1)
    answer = file.message_type.add(name="Answer")
    answer.field.add(name="text", number=1, type=9, label=1)
    service = file.service.add(name="ToyService")
    viewer, admin = contract.ROLE_VIEWER, contract.ROLE_PLATFORM_ADMIN
    service.method.extend(
        [
            _method("Read", contract.SCOPE_TENANT, roles=(viewer,), field="tenant"),
            _method("ReadMany", contract.SCOPE_TENANT, roles=(viewer,), field="parts.tenant"),
            _method("Rule", contract.SCOPE_PLATFORM, roles=(admin,), retry=3),
            _method("Open", contract.SCOPE_PUBLIC),
            _method("Known", contract.SCOPE_AUTHENTICATED),
            _method("Write", contract.SCOPE_PUBLIC, retry=3),
            _method("Watch", contract.SCOPE_TENANT, roles=(viewer,), field="tenant", server_streaming=True),
        ]
    )
    bare = file.service.add(name="BareService")
    bare.method.add(name="Anything", input_type=".tieline_test.Question", output_type=".tieline_test.Answer")
    descriptor_pool.Default().Add(file)


_define()
_pool = descriptor_pool.Default()
Question: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("tieline_test.Question"))
Answer: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("tieline_test.Answer"))

Handler = Callable[[Any, Any], Awaitable[Message]]


def define_service(name: str, *methods: descriptor_pb2.MethodDescriptorProto) -> str:
    """A service of its own in the pool, to be refused; answers its full name."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"tieline_test/{name}.proto",
        package="tieline_test",
        syntax="proto3",
        dependency=[FILE, "tieline/common/v1/options.proto"],
    )
    file.service.add(name=name).method.extend(methods)
    descriptor_pool.Default().Add(file)
    return f"tieline_test.{name}"


method = _method


class Toy:
    """The servicer: each method does what the test that uses it has put there."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, Handler] = {}
        self.stream_ended = False

    async def unary(self, name: str, request: Any, context: Any) -> Message:
        self.calls.append(name)
        if name in self.answers:
            return await self.answers[name](request, context)
        answer: Message = Answer(text=f"{name} {request.tenant}")
        return answer

    async def watch(self, request: Any, context: Any) -> AsyncIterator[Message]:
        self.calls.append("Watch")
        try:
            for number in range(1_000_000):
                if "Watch" in self.answers:
                    await self.answers["Watch"](request, context)
                yield Answer(text=str(number))
        finally:
            self.stream_ended = True


def add_toy(servicer: Toy, server: Any) -> None:
    """As the generated `add_…_to_server` does it."""
    handlers: dict[str, Any] = {}
    for descriptor in _pool.FindServiceByName(SERVICE).methods:
        coders = {
            "request_deserializer": Question.FromString,
            "response_serializer": Answer.SerializeToString,
        }
        if descriptor.server_streaming:
            handlers[descriptor.name] = grpc.unary_stream_rpc_method_handler(servicer.watch, **coders)
        else:

            async def unary(request: Any, context: Any, name: str = descriptor.name) -> Message:
                return await servicer.unary(name, request, context)

            handlers[descriptor.name] = grpc.unary_unary_rpc_method_handler(unary, **coders)
    server.add_registered_method_handlers(SERVICE, handlers)


def add_named(service: str) -> Callable[[Toy, Any], None]:
    """A registration function for any service of the pool, all of its methods unary."""

    def add(servicer: Toy, server: Any) -> None:
        handlers = {
            descriptor.name: grpc.unary_unary_rpc_method_handler(
                servicer.unary,
                request_deserializer=Question.FromString,
                response_serializer=Answer.SerializeToString,
            )
            for descriptor in _pool.FindServiceByName(service).methods
        }
        server.add_registered_method_handlers(service, handlers)

    return add


def unary_stub(channel: Any, name: str) -> Any:
    return channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=Question.SerializeToString,
        response_deserializer=Answer.FromString,
    )


def stream_stub(channel: Any, name: str) -> Any:
    return channel.unary_stream(
        f"/{SERVICE}/{name}",
        request_serializer=Question.SerializeToString,
        response_deserializer=Answer.FromString,
    )
