"""What every gRPC process opens and closes around its own subject: traces, metrics, the API, operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from foundation.clock import RandomIds
from foundation.clock.tasks import end
from foundation.identity import Authenticator
from foundation.rpc.server import RpcServer, follow_readiness
from foundation.settings.common import RpcSettings
from foundation.telemetry import Metrics, Readiness, open_traces
from foundation.telemetry.http import application, serve_http
from foundation.telemetry.ops import routes

log = structlog.get_logger(__name__)


def nothing(_: RpcServer) -> None:
    """No servicers: health and reflection are served all the same."""


@asynccontextmanager
async def serving(
    service: str,
    settings: RpcSettings,
    *,
    readiness: Readiness,
    authenticator: Authenticator,
    add_servicers: Callable[[RpcServer], None] = nothing,
    metrics: Metrics | None = None,
) -> AsyncIterator[None]:
    """Serve inside the block; at its end say so, drain, and only then let the caller close the rest."""
    metrics = metrics or Metrics(service)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_traces(service, settings.otlp_endpoint))
        server = RpcServer(
            settings.listen,
            authenticator=authenticator,
            metrics=metrics,
            tracer=tracer,
            ids=RandomIds(),
            drain=settings.drain_seconds,
        )
        add_servicers(server)
        http = await stack.enter_async_context(
            serve_http(application(routes(readiness, metrics)), settings.http, settings.drain_seconds)
        )
        await stack.enter_async_context(server)
        following = asyncio.create_task(follow_readiness(server, readiness), name="follow readiness")
        log.info("serving", grpc=str(server.address), http=str(http))
        try:
            yield
        finally:
            readiness.stop()
            await end(following)
            log.info("draining")
