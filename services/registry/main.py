"""The registry: opened here in the order in which it depends on things, closed in reverse.

    ConnectionService ── rows ─▶ applier ── Initialize ─┐
    EndpointService ◀── picture ◀── rows                ▼
    BrokerService ──────────────────▶ broker ──▶ plugin processes ◀── host
    OperationService ── rows ─▶ runner ─┘
    vault ── leases ─▶ purse ───────────┘

The API is closed first; then what is being applied is left for the next start; the plugins end last.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from foundation.clock import RandomIds, SystemClock
from foundation.identity import TokenVerifier
from foundation.identity.keys import RemoteKeys
from foundation.identity.session import Session, read_token
from foundation.net.addresses import Reach, network
from foundation.notices import NoticeRelay
from foundation.rpc import RpcServer, connect, serving
from foundation.settings import run
from foundation.store.opening import check_schema, open_store
from foundation.store.schemas import REGISTRY
from foundation.telemetry import Check, Metrics, Readiness, configure_logs
from services.registry.broker.broker import Broker
from services.registry.broker.purse import VaultPurse
from services.registry.broker.servicer import BrokerServicer
from services.registry.catalogue.catalogue import Catalogue
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import StoredLedger
from services.registry.catalogue.manifests import BUILT_IN
from services.registry.catalogue.servicer import CatalogueServicer
from services.registry.connections.applying import Applier
from services.registry.connections.book import ConnectionBook
from services.registry.connections.endpoint_servicer import EndpointServicer
from services.registry.connections.grants import VaultGrants
from services.registry.connections.moving import Moving
from services.registry.connections.picture import Picture
from services.registry.connections.servicer import ConnectionServicer
from services.registry.connections.suspending import Suspender
from services.registry.egress.proxy import open_egress
from services.registry.host.host import Host
from services.registry.host.places import hidden
from services.registry.host.rollouts import Rollouts
from services.registry.host.sandbox import Sandbox, Wanted
from services.registry.host.servicer import ProcessServicer
from services.registry.host.socket_room import socket_room
from services.registry.joining.opening import announce_every, join_book, joining
from services.registry.joining.remote import Roster
from services.registry.joining.servicer import TokenServicer
from services.registry.operations.bell import Bell
from services.registry.operations.book import OperationBook
from services.registry.operations.keeping import Keeper
from services.registry.operations.measuring import OperationMetrics
from services.registry.operations.runner import Bounds, Runner
from services.registry.operations.servicer import OperationServicer
from services.registry.recording import VaultRecorder
from services.registry.settings import RegistrySettings
from services.registry.subscriptions.subscriber import Subscriber
from tieline.registry.v1.broker_pb2_grpc import add_BrokerServiceServicer_to_server
from tieline.registry.v1.catalogue_pb2_grpc import add_CatalogueServiceServicer_to_server
from tieline.registry.v1.connections_pb2_grpc import add_ConnectionServiceServicer_to_server
from tieline.registry.v1.endpoints_pb2_grpc import add_EndpointServiceServicer_to_server
from tieline.registry.v1.joining_pb2_grpc import add_JoinServiceServicer_to_server
from tieline.registry.v1.operations_pb2_grpc import add_OperationServiceServicer_to_server
from tieline.registry.v1.processes_pb2_grpc import add_ProcessServiceServicer_to_server


async def serve(settings: RegistrySettings, stop: asyncio.Event) -> None:
    configure_logs("registry", settings.log_level, settings.log_format)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        own = await open_(open_store(settings.database_url, REGISTRY))
        worker = await open_(open_store(settings.worker_database_url, REGISTRY))
        credentials = await open_(connect(str(settings.credentials)))
        keys = await open_(RemoteKeys(credentials))
        session = Session(credentials, read_token(settings.token_file), clock)
        vault = await open_(connect(str(settings.credentials), session.token))
        recorder = await open_(VaultRecorder(vault))
        if settings.nats_url is not None:
            await open_(NoticeRelay("registry", settings.nats_url, worker))

        ledger = StoredLedger(worker, clock)
        directories = [BUILT_IN, *map(Path, settings.plugins)]
        catalogue = await open_(Catalogue(directories, ledger, Installer(Path(settings.environments))))
        room = stack.enter_context(socket_room())
        private = hidden(
            settings.installation or "",
            *settings.private_directories,
            settings.token_file,
            settings.authority_file or "",
        )
        sandbox = Sandbox(await open_(open_egress(_reach(settings))), Wanted(settings.sandbox), private)
        joins = join_book(settings, worker, clock)
        roster = await open_(Roster(joins, announce_every(settings)))
        host = await open_(Host(catalogue, ledger, room, sandbox=sandbox, roster=roster, clock=clock))
        picture = await open_(Picture(worker))
        purse = await open_(VaultPurse(vault, clock))
        broker = Broker(host, picture, purse, clock=clock)
        rollouts = await open_(Rollouts(host, Moving(picture, broker, host), clock))
        applier = await open_(Applier(worker, host, broker, picture, clock))
        await open_(Suspender(vault, worker, picture, clock))
        book = ConnectionBook(
            own=own,
            host=host,
            broker=broker,
            picture=picture,
            applier=applier,
            grants=VaultGrants(vault),
            recorder=recorder,
            clock=clock,
        )
        verifier, metrics = TokenVerifier(keys, clock), Metrics("registry")
        bell, measured = Bell(), OperationMetrics(metrics.registry)
        operations = OperationBook(
            own=own, manifests=host, recorder=recorder, bell=bell, clock=clock, metrics=measured
        )
        kept = timedelta(days=settings.operation_days)
        await open_(Keeper(worker, clock, kept, measured))
        await open_(
            Runner(
                worker,
                broker.executing,
                bell,
                clock,
                owner=RandomIds().new("registry"),
                ready=lambda: picture.snapshot.known,
                bounds=Bounds(lease=settings.operation_lease_seconds, drain=settings.drain_seconds),
                metrics=measured,
            )
        )
        subscriber = Subscriber(
            worker=worker,
            manifests=host,
            operations=operations,
            picture=picture,
            public_url=settings.public_url,
            clock=clock,
        )
        await open_(subscriber)
        api = Api(
            CatalogueServicer(catalogue, host),
            ProcessServicer(host, rollouts),
            ConnectionServicer(book, settings.public_url),  # type: ignore[abstract]
            EndpointServicer(picture, host),
            BrokerServicer(broker),
            OperationServicer(operations),
            None if joins is None else TokenServicer(joins, host.versions),  # type: ignore[abstract]
        )
        checks: dict[str, Check] = {
            "postgres": partial(check_schema, own),
            "postgres (worker)": partial(check_schema, worker),
            "credentials": keys.check,
            "connections": picture.check,
        }
        await open_(joining(settings, joins, verifier, clock, metrics))
        await open_(
            serving(
                "registry",
                settings,
                readiness=Readiness(checks),
                authenticator=verifier,
                add_servicers=api.add_to,
                metrics=metrics,
            )
        )
        await stop.wait()
        # Watchers wait for changes for ever; without this word the drain would wait for them.
        picture.stop_watching()
        bell.stop_watching()


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests; methods that are not served yet are answered by the generated base classes."""

    catalogue: CatalogueServicer
    processes: ProcessServicer
    connections: ConnectionServicer
    endpoints: EndpointServicer
    broker: BrokerServicer
    operations: OperationServicer
    tokens: TokenServicer | None
    """Absent where no plugin may join."""

    def add_to(self, server: RpcServer) -> None:
        server.add(add_CatalogueServiceServicer_to_server, self.catalogue)
        server.add(add_ProcessServiceServicer_to_server, self.processes)
        server.add(add_ConnectionServiceServicer_to_server, self.connections)
        server.add(add_EndpointServiceServicer_to_server, self.endpoints)
        server.add(add_BrokerServiceServicer_to_server, self.broker)
        server.add(add_OperationServiceServicer_to_server, self.operations)
        if self.tokens is not None:
            server.add(add_JoinServiceServicer_to_server, self.tokens)


def _reach(settings: RegistrySettings) -> Reach:
    networks = tuple(network("egress_networks", text) for text in settings.egress_networks)
    return Reach(settings.egress_loopback, networks)


def main() -> None:
    run("registry", RegistrySettings, serve)
