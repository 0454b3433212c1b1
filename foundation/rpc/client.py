"""Channels to our own services: budgets, tokens, traces and problems, with nothing to do per call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from opentelemetry import propagate

from foundation.errors import Code, Problem
from foundation.errors.grpc import from_call
from foundation.identity import Method, describe_method
from foundation.rpc import options
from foundation.rpc.deadline import budget

Connection = grpc.aio.Channel
TokenSource = Callable[[], Awaitable[str]]

UNARY_SECONDS = 10.0
ATTEMPTS = 3
BACKOFF_SECONDS = 0.1


@asynccontextmanager
async def connect(target: str, token: TokenSource | None = None) -> AsyncIterator[Connection]:
    """A channel whose stubs raise `Problem`, repeat only what may be repeated, and never wait for ever."""
    interceptors: list[Any] = [_Unary(token), _Stream(token)]
    async with grpc.aio.insecure_channel(target, options.CLIENT, interceptors=interceptors) as channel:
        yield channel


@dataclass(frozen=True, slots=True)
class _Outgoing:
    token: TokenSource | None

    async def prepare(
        self, details: grpc.aio.ClientCallDetails, seconds: float | None
    ) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        for key, value in carrier.items():
            metadata.add(key, value)
        if self.token is not None and metadata.get("authorization") is None:
            metadata.add("authorization", f"Bearer {await self.token()}")
        return grpc.aio.ClientCallDetails(
            details.method, seconds, metadata, details.credentials, details.wait_for_ready
        )


class _Unary(_Outgoing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        path = _path(client_call_details)
        loop = asyncio.get_running_loop()
        seconds = budget(client_call_details.timeout or UNARY_SECONDS)
        ends = loop.time() + seconds
        attempts = ATTEMPTS if _repeatable(path) else 1
        for attempt in range(1, attempts + 1):
            details = await self.prepare(client_call_details, max(0.0, ends - loop.time()))
            try:
                return await (await continuation(details, request))
            except grpc.aio.AioRpcError as failed:
                problem = from_call(failed, path)
                if attempt == attempts or failed.code() != grpc.StatusCode.UNAVAILABLE:
                    raise problem from failed
            # Full jitter: callers that failed together do not come back together.
            pause = random.uniform(0, BACKOFF_SECONDS * 2**attempt)  # noqa: S311 - not a secret
            if loop.time() + pause >= ends:
                raise problem
            await asyncio.sleep(pause)
        raise Problem(Code.DEADLINE_EXCEEDED, method=path)


class _Stream(_Outgoing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        path = _path(client_call_details)
        timeout = client_call_details.timeout
        details = await self.prepare(client_call_details, None if timeout is None else budget(timeout))
        call = await continuation(details, request)

        async def messages() -> AsyncIterator[Any]:
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as failed:
                raise from_call(failed, path) from failed

        return messages()


def _path(details: grpc.aio.ClientCallDetails) -> str:
    method: str | bytes = details.method
    return method.decode() if isinstance(method, bytes) else method


_known: dict[str, Method | None] = {}


def _repeatable(path: str) -> bool:
    """What the contract says of the method; a foreign method without a word on it is never repeated."""
    if path not in _known:
        service, _, name = path.lstrip("/").partition("/")
        try:
            found = descriptor_pool.Default().FindServiceByName(service)
            _known[path] = describe_method(found.methods_by_name[name])
        except (KeyError, ValueError):
            _known[path] = None
    method = _known[path]
    return method is not None and method.repeatable
