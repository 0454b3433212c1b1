"""A connection as the registry keeps it: what is wanted, how that stands, and what runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.registry.broker.serving import Binding, Rest, Served
from tieline.common.v1.failure_pb2 import Failure
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1.processes_pb2 import ISOLATION_PER_TENANT


class State(StrEnum):
    """As the contract's Connection.State, in lower case. FAILING is what health makes of ACTIVE; nobody stores it."""

    PENDING = "pending"
    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    FAILING = "failing"
    DELETING = "deleting"


class Application(StrEnum):
    """As the contract's Connection.Application, in lower case."""

    PENDING = "pending"
    APPLIED = "applied"
    FAILED = "failed"


_RESTS = {State.SUSPENDED: Rest.PROVIDER, State.PAUSED: Rest.ALL, State.DELETING: Rest.ALL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    tenant: str
    id: str
    instance: str
    wanted: pb.Connection
    """Only the fields that can be set, and never the name."""
    settings_version: str
    revision: int
    applied_revision: int
    state: State
    state_time: datetime
    failure: Failure | None = None
    """Why it is so, unless it is active."""
    application: Application
    application_failure: Failure | None
    resolved_version: str
    endpoints: dict[str, str]
    """Where each webhook arrives: the last part of its URL."""
    subscriptions: tuple[pb.ProviderSubscription, ...] = ()
    """Made at the provider by the platform itself."""
    create_time: datetime
    update_time: datetime

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/connections/{self.id}"

    @property
    def plugin(self) -> str:
        return self.wanted.plugin.removeprefix("plugins/")

    @property
    def etag(self) -> str:
        return f"{self.revision}.{self.applied_revision}.{int(self.update_time.timestamp() * 1000)}"

    def served(self, revision: int) -> Served:
        return Served(
            connection=self.name,
            plugin=self.plugin,
            instance=self.instance,
            revision=revision,
            settings=self.wanted.settings,
            settings_version=self.settings_version,
            version_range=self.wanted.version_range,
            cell=_cell(self.tenant) if self.wanted.isolation == ISOLATION_PER_TENANT else "",
            bindings=tuple(Binding(one.slot, one.entry) for one in self.wanted.credentials),
            rest=_RESTS.get(self.state, Rest.NONE),
        )


def _cell(tenant: str) -> str:
    """The same for all connections of a tenant, and no name that a plugin could read."""
    return hashlib.sha256(f"cell of {tenant}".encode()).hexdigest()[:12]
