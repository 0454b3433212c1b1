"""The only place that serves: a socket, health, deadlines, and the three ways in which a plugin is told to end."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from tieline.sdk._convert.actions import contradiction
from tieline.sdk._convert.manifest import read_manifest
from tieline.sdk._convert.service import Method, Service, Streamed, launch_proof, refusal
from tieline.sdk.core import Failure, FailureKind, Plugin

if TYPE_CHECKING:
    from tieline.sdk._join import Membership

log = logging.getLogger("tieline")

SERVICE = "tieline.plugin.v1.PluginService"
MESSAGE_LIMIT = 32 * 1024 * 1024
GRACE = 20.0
REGISTRY = b"registry.tieline.internal"
"""The name in the certificate of whoever may call a plugin that joined."""

# Part of the contract for both sides: see the top of plugin.proto.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

_CODES = {
    FailureKind.TRANSIENT: grpc.StatusCode.UNAVAILABLE,
    FailureKind.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FailureKind.AUTH_FAILED: grpc.StatusCode.UNAUTHENTICATED,
    FailureKind.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    FailureKind.INVALID_CONFIG: grpc.StatusCode.FAILED_PRECONDITION,
    FailureKind.INVALID_INPUT: grpc.StatusCode.INVALID_ARGUMENT,
    FailureKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    FailureKind.CONFLICT: grpc.StatusCode.ABORTED,
    FailureKind.CURSOR_INVALID: grpc.StatusCode.OUT_OF_RANGE,
    FailureKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    FailureKind.INTERNAL: grpc.StatusCode.INTERNAL,
    FailureKind.NOT_PREPARED: grpc.StatusCode.FAILED_PRECONDITION,
}


def run(plugin: Plugin, manifest: Path) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        address = os.environ["TIELINE_PLUGIN_ADDRESS"]
    except KeyError:
        raise SystemExit("a plugin is started by Tieline, which sets TIELINE_PLUGIN_ADDRESS") from None
    # Out of the environment, so that nothing this process starts can prove to be it.
    nonce = os.environ.pop("TIELINE_PLUGIN_NONCE", "")
    asyncio.run(_serve(plugin, manifest, address, base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))))


async def _serve(plugin: Plugin, manifest: Path, address: str, nonce: bytes) -> None:
    told: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def stop(grace: float) -> None:
        if not told.done():
            told.set_result(grace)

    _listen_for_the_end(stop)  # before there is an address: who sees it may already want the end
    described = read_manifest(manifest)
    if why := contradiction(plugin, described):
        raise SystemExit(why)
    service = Service(plugin, described, launch_proof(nonce, address), stop)
    server = grpc.aio.server(options=OPTIONS)
    wrapped = {name: _wrap(method) for name, method in service.methods().items()}
    wrapped |= {name: _wrap_stream(method) for name, method in service.streamed().items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, wrapped),))
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    joining = asyncio.create_task(_membership(described.name, described.version))
    await asyncio.wait((joining, told), return_when=asyncio.FIRST_COMPLETED)
    if told.done():  # nobody let us in, and nobody wants us any more
        joining.cancel()
        return
    membership = joining.result()
    if membership is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, membership.credentials())
    await server.start()
    for name in ("", SERVICE):
        await state.set(name, health_pb2.HealthCheckResponse.SERVING)
    keeping = asyncio.create_task(membership.keep(address, stop, GRACE)) if membership else None
    grace = await told
    if keeping is not None:
        keeping.cancel()
    await state.enter_graceful_shutdown()
    await server.stop(grace)


async def _membership(name: str, version: str) -> Membership | None:
    """How a plugin that nobody started here belongs to the platform; None where the host is its parent."""
    if "TIELINE_JOIN_ADDRESS" not in os.environ:
        return None
    try:
        # Who is started by the platform needs none of the cryptography behind it.
        from tieline.sdk._join import Membership  # noqa: PLC0415
    except ImportError as missing:
        raise SystemExit(f"a plugin that joins needs `tieline[remote]` ({missing.name} is missing)") from None
    return await Membership.join(name, version)


def _listen_for_the_end(stop: Callable[[float], None]) -> None:
    """SIGTERM and the end of stdin; Shutdown is a method. All mean the same."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, GRACE)

    def read() -> None:
        with suppress(BlockingIOError):
            if not os.read(0, 4096):
                loop.remove_reader(0)
                stop(GRACE)

    # A terminal or /dev/null is somebody trying the plugin by hand: its end means nothing.
    if stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISSOCK(os.fstat(0).st_mode):
        os.set_blocking(0, False)
        loop.add_reader(0, read)


def _wrap(method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        try:
            _demand_host(context)
            _demand_deadline(context)
            return await method.answer(request)
        except Failure as failure:
            await _abort(context, failure)
        except Exception as error:  # the border of every call; the log has the rest
            log.exception("a call failed")
            defect = Failure(FailureKind.INTERNAL, "DEFECT", f"the plugin raised {type(error).__name__}")
            await _abort(context, defect)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=method.request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _wrap_stream(method: Streamed) -> grpc.RpcMethodHandler[Any, Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
        try:
            _demand_host(context)
            _demand_deadline(context)
            # The host leaves by cancelling; the generator behind it is closed with it.
            async with aclosing(aiter(method.answer(request))) as messages:  # type: ignore[type-var]  # generators
                async for message in messages:
                    yield message
        except Failure as failure:
            await _abort(context, failure)
        except Exception as error:  # the border of every call; the log has the rest
            log.exception("a poll failed")
            defect = Failure(FailureKind.INTERNAL, "DEFECT", f"the plugin raised {type(error).__name__}")
            await _abort(context, defect)

    return grpc.unary_stream_rpc_method_handler(
        answer,
        request_deserializer=method.request.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _demand_host(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Over TLS any plugin could knock with a certificate of its own. A unix socket is the host's alone."""
    shown = context.auth_context()
    if b"ssl" in shown.get("transport_security_type", ()) and REGISTRY not in shown.get(
        "x509_subject_alternative_name", ()
    ):
        raise Failure(FailureKind.PERMISSION_DENIED, "NOT_THE_HOST", "only the registry calls plugins")


def _demand_deadline(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if context.time_remaining() is None:
        why = "every call to a plugin has a deadline"
        raise Failure(FailureKind.INVALID_INPUT, "DEADLINE_REQUIRED", why)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], failure: Failure) -> NoReturn:
    code = _CODES[failure.kind]
    number: int = code.value[0]
    message = failure.message or failure.reason
    context.set_trailing_metadata(
        (("grpc-status-details-bin", _rich_status(number, message[:500], refusal(failure))),)
    )
    await context.abort(code, message[:500])


def _rich_status(code: int, message: str, details: list[Message]) -> bytes:
    """A serialized `google.rpc.Status`, for which alone another dependency would be needed."""
    status = b"\x08" + _varint(code) + _field(2, message.encode(errors="replace"))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status += _field(3, packed.SerializeToString())
    return status


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
