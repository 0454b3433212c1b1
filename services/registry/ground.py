"""What every room of the registry stands on, opened by `main`."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.clock import Clock
from foundation.rpc import Connection
from foundation.store.unit_of_work import Store
from foundation.telemetry import Metrics
from services.registry.broker.broker import Broker
from services.registry.connections.picture import Picture
from services.registry.host.host import Host
from services.registry.recording import Recorder
from services.registry.settings import RegistrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    settings: RegistrySettings
    clock: Clock
    metrics: Metrics
    replica: str
    """Who we are among the replicas, anew with each start."""
    own: Store
    """As the role that answers requests: one tenant at a time."""
    worker: Store
    """As the role that works across tenants."""
    vault: Connection
    mapper: Connection
    recorder: Recorder
    host: Host
    picture: Picture
    broker: Broker
