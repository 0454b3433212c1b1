"""The HTTP edge: opened here in the order in which it depends on things, closed in reverse."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import structlog
from starlette.routing import Route

from foundation.clock import SystemClock
from foundation.identity.session import Session, read_token
from foundation.rpc import check_health, connect
from foundation.settings import run
from foundation.telemetry import Metrics, Readiness, configure_logs, open_traces
from foundation.telemetry.http import application, serve_http
from foundation.telemetry.ops import routes
from gateway.batching import Inbox
from gateway.endpoints import Endpoints
from gateway.hooks import Hooks
from gateway.keyring import Keyring
from gateway.oauth import Oauth
from gateway.routing import RoutingMetrics
from gateway.settings import GatewaySettings
from gateway.tenants import Tenants
from tieline.credentials.v1 import oauth_pb2_grpc

log = structlog.get_logger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    configure_logs("gateway", settings.log_level, settings.log_format)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_traces("gateway", settings.otlp_endpoint))
        plain = await stack.enter_async_context(connect(str(settings.credentials)))
        token = Session(plain, read_token(settings.token_file), clock).token
        credentials = await stack.enter_async_context(connect(str(settings.credentials), token))
        registry = await stack.enter_async_context(connect(str(settings.registry), token))
        mapper = await stack.enter_async_context(connect(str(settings.mapper), token))

        endpoints = await stack.enter_async_context(Endpoints(registry))
        tenants = await stack.enter_async_context(Tenants(credentials))
        keyring = await stack.enter_async_context(Keyring(credentials, clock))
        inbox = await stack.enter_async_context(Inbox(mapper))
        metrics = Metrics("gateway")
        hooks = Hooks(
            endpoints,
            tenants,
            keyring,
            inbox,
            clock=clock,
            tracer=tracer,
            body_seconds=settings.body_seconds,
            metrics=RoutingMetrics(metrics.registry),
        )

        oauth = Oauth(oauth_pb2_grpc.OauthServiceStub(credentials), settings.public_url)
        readiness = Readiness(
            {
                "credentials": partial(check_health, credentials, "credentials"),
                "registry": partial(check_health, registry, "registry"),
                "mapper": partial(check_health, mapper, "mapper"),
                "endpoints": endpoints.check,
                "tenants": tenants.check,
            }
        )
        app = application(
            [
                Route("/hooks/{endpoint}", hooks.receive, methods=["POST"]),
                Route("/oauth/start", oauth.start, methods=["GET"]),
                Route("/oauth/callback", oauth.callback, methods=["GET"]),
                *routes(readiness, metrics),
            ]
        )
        address = await stack.enter_async_context(serve_http(app, settings.http, settings.drain_seconds))
        log.info("serving", http=str(address))
        await stop.wait()
        readiness.stop()


def main() -> None:
    run("gateway", GatewaySettings, serve)
