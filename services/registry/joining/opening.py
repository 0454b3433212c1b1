"""The way in for plugins that run elsewhere: open where the settings name an address, and closed otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import structlog
from opentelemetry import trace

from foundation.clock import Clock, RandomIds
from foundation.errors import Code, Problem
from foundation.identity import Authenticator
from foundation.rpc import RpcServer
from foundation.settings import Address
from foundation.store.unit_of_work import Store
from foundation.telemetry import Metrics
from services.registry.joining.authority import open_authority
from services.registry.joining.book import JoinBook
from services.registry.joining.front import Front
from services.registry.joining.servicer import PeerServicer
from services.registry.settings import RegistrySettings
from tieline.registry.v1.joining_pb2_grpc import add_JoinServiceServicer_to_server

log = structlog.get_logger(__name__)


def announce_every(settings: RegistrySettings) -> timedelta:
    return timedelta(seconds=settings.announce_seconds)


def join_book(settings: RegistrySettings, worker: Store, clock: Clock) -> JoinBook | None:
    if settings.join_listen is None:
        return None
    if settings.authority_file is None:
        why = "plugins that join need an authority; name the file in which its key is, or shall be, kept"
        raise Problem(Code.SETTINGS_INVALID, where="`authority_file`", why=why)
    authority = open_authority(Path(settings.authority_file), clock)
    return JoinBook(worker, authority, clock, timedelta(seconds=settings.certificate_seconds))


@asynccontextmanager
async def joining(
    settings: RegistrySettings,
    book: JoinBook | None,
    authenticator: Authenticator,
    clock: Clock,
    metrics: Metrics,
) -> AsyncIterator[Front | None]:
    """Serve Join, RenewCertificate and Announce inside the block."""
    if book is None or settings.join_listen is None:
        yield None
        return
    front = Front(book.authority, clock)
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=authenticator,
        metrics=metrics,
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=settings.drain_seconds,
    )
    servicer = PeerServicer(book, front.holder, announce_every(settings))  # type: ignore[abstract]  # no tokens here
    server.add(add_JoinServiceServicer_to_server, servicer)
    async with server:
        await server.set_ready(ready=True)
        async with front.serving(settings.join_listen, server.address):
            log.info("plugins may join", address=str(front.address))
            yield front
