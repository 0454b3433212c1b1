"""A connection as the registry keeps it: what is wanted, how that stands, and what runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.registry.apps.app import with_defaults
from services.registry.broker.serving import Binding, Pace, Rest, Served
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
    APPLYING = "applying"
    APPLIED = "applied"
    FAILED = "failed"


_RESTS = {State.SUSPENDED: Rest.PROVIDER, State.PAUSED: Rest.ALL, State.DELETING: Rest.ENDING}


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
    edition: int = 1
    """Grows with every change that somebody makes of it."""
    attempts: int = 0
    """How often its newest revision was tried in vain."""
    proven_accounts: tuple[str, ...] = ()
    """Accounts at the provider that its credentials control, as the provider said."""
    app_settings: bytes = b""
    """Those of its app, where it has one."""
    accounts: Mapping[str, str] = field(default_factory=dict)
    """Of the accounts that it names, those it receives for, each with how that is known."""

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/connections/{self.id}"

    @property
    def plugin(self) -> str:
        return self.wanted.plugin.removeprefix("plugins/")

    @property
    def etag(self) -> str:
        """Of this very connection, not of one that had its id before; what the platform does by itself leaves it."""
        return f"{self.instance[:8]}.{self.edition}"

    @property
    def settings(self) -> bytes:
        """What its plugin is given: its own over those of its app."""
        return with_defaults(self.app_settings, self.wanted.settings)

    def served(self, revision: int) -> Served:
        accounts = tuple(sorted(self.accounts))
        return Served(
            connection=self.name,
            plugin=self.plugin,
            instance=_instance(self.instance, revision, accounts, self.app_settings),
            revision=revision,
            settings=self.settings,
            account_keys=accounts,
            settings_version=self.settings_version,
            version_range=self.wanted.version_range,
            cell=_cell(self.tenant) if self.wanted.isolation == ISOLATION_PER_TENANT else "",
            bindings=tuple(Binding(one.slot, one.entry, one.credential) for one in self.wanted.credentials),
            flags=tuple(self.wanted.flags),
            pace=Pace(self.wanted.rate_limit.calls_per_minute, self.wanted.rate_limit.concurrency),
            rest=_RESTS.get(self.state, Rest.NONE),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One accepted change. What it says never changes; how it went is told beside it."""

    number: int
    wanted: pb.Connection
    settings_version: str
    """Version of the plugin that its settings were written for."""
    author: str
    create_time: datetime
    application: Application = Application.PENDING
    rollback_of: int = 0
    migrated_from: int = 0
    """The revision whose settings these are, in the words of another version; 0: somebody wrote them."""


def _instance(base: str, revision: int, accounts: tuple[str, ...], app_settings: bytes) -> str:
    """Another one too when an app gives it something else, so that its plugin never mixes both."""
    whole = f"{base}/{revision}"
    if accounts or app_settings not in (b"", b"{}"):
        whole += "\0".join(("", app_settings.decode(), *accounts))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _cell(tenant: str) -> str:
    """The same for all connections of a tenant, and no name that a plugin could read."""
    return hashlib.sha256(f"cell of {tenant}".encode()).hexdigest()[:12]
