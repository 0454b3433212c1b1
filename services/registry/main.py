"""The registry: opened here in the order in which it depends on things, closed in reverse.

    StatusService ◀── health ◀── what becomes of calls, what processes do, what waits
    ConnectionService ── rows ─▶ applier ── Initialize ─┐
    EndpointService ◀── picture ◀── rows                ▼
    BrokerService ──────────────────▶ broker ──▶ plugin processes ◀── host
    OperationService ── rows ─▶ runner ─┘
    vault ── leases ─▶ purse ───────────┘  ▲
    ScheduleService ── rows ─▶ scheduler ──┴─ records ─▶ mapper's inbox
    ProcessService ─▶ fleet ── rows ─▶ other replicas

The API is closed first; then what is being applied is left for the next start; the plugins end last.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from foundation.clock import SystemClock
from foundation.identity import TokenVerifier
from foundation.identity.keys import RemoteKeys
from foundation.identity.session import Session, read_token
from foundation.net.addresses import Reach, network
from foundation.notices import NoticeRelay
from foundation.process.cgroups import find
from foundation.rpc import RpcServer, check_health, connect, serving
from foundation.settings import run
from foundation.store.opening import check_schema, open_store
from foundation.store.schemas import REGISTRY
from foundation.telemetry import Check, Metrics, Readiness, configure_logs
from services.registry.apps.book import AppBook
from services.registry.apps.servicer import AppServicer
from services.registry.broker.broker import Broker
from services.registry.broker.purse import VaultPurse
from services.registry.broker.servicer import BrokerServicer
from services.registry.catalogue.catalogue import Catalogue
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import StoredLedger
from services.registry.catalogue.manifests import BUILT_IN
from services.registry.catalogue.servicer import CatalogueServicer
from services.registry.connections.endpoint_servicer import EndpointServicer
from services.registry.connections.moving import Moving
from services.registry.connections.opening import connecting
from services.registry.connections.picture import Picture
from services.registry.connections.servicer import ConnectionServicer
from services.registry.connections.shown import Shown
from services.registry.egress.proxy import open_egress
from services.registry.flags.book import FlagBook
from services.registry.flags.servicer import FlagServicer
from services.registry.ground import Ground
from services.registry.health.ear import Ear
from services.registry.health.measuring import HealthMetrics
from services.registry.health.opening import watching
from services.registry.health.servicer import StatusServicer
from services.registry.host.host import Host
from services.registry.host.places import hidden
from services.registry.host.rollouts import Rollouts
from services.registry.host.sandbox import Sandbox, Wanted
from services.registry.host.servicer import ProcessServicer
from services.registry.host.socket_room import socket_room
from services.registry.joining.opening import announce_every, join_book, joining
from services.registry.joining.remote import Roster
from services.registry.joining.servicer import TokenServicer
from services.registry.operations.opening import operating
from services.registry.operations.servicer import OperationServicer
from services.registry.recording import VaultRecorder
from services.registry.replicas.fleet import Fleet
from services.registry.replicas.own import Own
from services.registry.replicas.presence import Presence
from services.registry.replicas.replica import new_replica
from services.registry.schedules.opening import schedules
from services.registry.schedules.servicer import ScheduleServicer
from services.registry.settings import RegistrySettings
from tieline.registry.v1.apps_pb2_grpc import add_AppServiceServicer_to_server
from tieline.registry.v1.broker_pb2_grpc import add_BrokerServiceServicer_to_server
from tieline.registry.v1.catalogue_pb2_grpc import add_CatalogueServiceServicer_to_server
from tieline.registry.v1.connections_pb2_grpc import add_ConnectionServiceServicer_to_server
from tieline.registry.v1.endpoints_pb2_grpc import add_EndpointServiceServicer_to_server
from tieline.registry.v1.flags_pb2_grpc import add_FlagServiceServicer_to_server
from tieline.registry.v1.joining_pb2_grpc import add_JoinServiceServicer_to_server
from tieline.registry.v1.operations_pb2_grpc import add_OperationServiceServicer_to_server
from tieline.registry.v1.processes_pb2_grpc import add_ProcessServiceServicer_to_server
from tieline.registry.v1.schedules_pb2_grpc import add_ScheduleServiceServicer_to_server
from tieline.registry.v1.status_pb2_grpc import add_StatusServiceServicer_to_server


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
        mapper = await open_(connect(str(settings.mapper), session.token))
        metrics, replica = Metrics("registry"), new_replica()
        relay = None
        if settings.nats_url is not None:
            relay = await open_(NoticeRelay("registry", settings.nats_url, worker))

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
        host = await open_(
            Host(catalogue, ledger, room, sandbox=sandbox, roster=roster, cgroups=find(), clock=clock)
        )
        picture = await open_(Picture(worker))
        purse = await open_(VaultPurse(vault, clock))
        ear = Ear(clock, HealthMetrics(metrics.registry))
        broker = Broker(host, picture, purse, clock=clock, listener=ear)
        ground = Ground(
            settings=settings,
            clock=clock,
            metrics=metrics,
            replica=replica,
            own=own,
            worker=worker,
            vault=vault,
            mapper=mapper,
            recorder=recorder,
            host=host,
            picture=picture,
            broker=broker,
        )
        connections = await open_(connecting(ground))
        rollouts = await open_(Rollouts(host, Moving(picture, broker, host, connections.drafts), clock))
        own_processes = Own(replica, host, rollouts)
        await open_(Presence(own_processes, worker, host, clock, broker.calls.paces.shared_by))
        polled = await open_(schedules(ground, connections.removals))
        operations, bell = await open_(operating(ground, connections.removals))
        rests_on: dict[str, Check] = {
            "postgresql": partial(check_schema, own),
            "credentials": partial(check_health, credentials, "credentials"),
            "mapper": partial(check_health, mapper, "mapper"),
            **({"jetstream": relay.check} if relay is not None else {}),
        }
        wake = asyncio.Event() if relay is None else relay.wake
        statuses = await open_(watching(ground, ear, connections.removals, rests_on, wake))
        shown = Shown(statuses.seen, settings.public_url)
        api = Api(
            CatalogueServicer(catalogue, host, recorder),
            ProcessServicer(Fleet(own_processes, worker, clock), recorder),
            ConnectionServicer(connections.people, picture, shown),
            AppServicer(AppBook(ground, connections.people.book), shown, settings.public_url),
            EndpointServicer(picture, host),
            BrokerServicer(broker),
            FlagServicer(FlagBook(own, recorder, connections.follower, clock)),
            polled,
            statuses,
            operations,
            None if joins is None else TokenServicer(joins, host.versions),  # type: ignore[abstract]
        )
        checks: dict[str, Check] = {
            "postgres": partial(check_schema, own),
            "postgres (worker)": partial(check_schema, worker),
            "credentials": keys.check,
            "connections": picture.check,
        }
        verifier = TokenVerifier(keys, clock)
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
        statuses.stop_watching()
        bell.stop_watching()


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests; methods that are not served yet are answered by the generated base classes."""

    catalogue: CatalogueServicer
    processes: ProcessServicer
    connections: ConnectionServicer
    apps: AppServicer
    endpoints: EndpointServicer
    broker: BrokerServicer
    flags: FlagServicer
    schedules: ScheduleServicer
    statuses: StatusServicer
    operations: OperationServicer
    tokens: TokenServicer | None
    """Absent where no plugin may join."""

    def add_to(self, server: RpcServer) -> None:
        server.add(add_CatalogueServiceServicer_to_server, self.catalogue)
        server.add(add_ProcessServiceServicer_to_server, self.processes)
        server.add(add_ConnectionServiceServicer_to_server, self.connections)
        server.add(add_AppServiceServicer_to_server, self.apps)
        server.add(add_EndpointServiceServicer_to_server, self.endpoints)
        server.add(add_BrokerServiceServicer_to_server, self.broker)
        server.add(add_FlagServiceServicer_to_server, self.flags)
        server.add(add_ScheduleServiceServicer_to_server, self.schedules)
        server.add(add_StatusServiceServicer_to_server, self.statuses)
        server.add(add_OperationServiceServicer_to_server, self.operations)
        if self.tokens is not None:
            server.add(add_JoinServiceServicer_to_server, self.tokens)


def _reach(settings: RegistrySettings) -> Reach:
    networks = tuple(network("egress_networks", text) for text in settings.egress_networks)
    return Reach(settings.egress_loopback, networks)


def main() -> None:
    run("registry", RegistrySettings, serve)
