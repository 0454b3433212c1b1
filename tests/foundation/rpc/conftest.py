from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import structlog
from joserfc.jwk import OKPKey
from opentelemetry import trace

from foundation.clock import NumberedIds, SystemClock
from foundation.identity import Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.rpc import Connection, RpcServer, connect
from foundation.settings import Address
from foundation.telemetry import Metrics
from tests.foundation.rpc import toy

KEY = OKPKey.generate_key("Ed25519")


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """What a service in an earlier test of this process has configured says nothing about these."""
    structlog.reset_defaults()


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


def token_for(principal: Principal) -> str:
    return TokenSigner(KEY, SystemClock()).sign(principal, timedelta(minutes=5))


VIEWER_OF_ACME = Principal(Kind.USER, "ada", tenant_roles={"acme": frozenset({Role.VIEWER})})
PLATFORM_ADMIN = Principal(Kind.USER, "root", platform_roles=frozenset({Role.PLATFORM_ADMIN}))


@dataclass
class Running:
    server: RpcServer
    metrics: Metrics
    servicer: toy.Toy = field(default_factory=toy.Toy)

    def as_(self, principal: Principal | None) -> AbstractAsyncContextManager[Connection]:
        async def token() -> str:
            assert principal is not None
            return token_for(principal)

        return connect(str(self.server.address), token if principal else None)


def make_server(metrics: Metrics, address: Address = Address("127.0.0.1", 0)) -> RpcServer:  # noqa: B008
    return RpcServer(
        address,
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=metrics,
        tracer=trace.NoOpTracer(),
        ids=NumberedIds(),
        drain=2.0,
    )


@asynccontextmanager
async def _run() -> AsyncIterator[Running]:
    metrics = Metrics("toy")
    server = make_server(metrics)
    running = Running(server, metrics)
    server.add(toy.add_toy, running.servicer)
    async with server:
        yield running


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with _run() as running:
        yield running


@pytest.fixture
def run() -> Callable[[], AbstractAsyncContextManager[Running]]:
    """For tests about how a server ends, which end it themselves."""
    return _run
