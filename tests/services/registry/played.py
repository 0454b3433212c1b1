"""Everything about connections on a real database, with plugin, provider and vault played by small objects.

For properties that want thousands of changes: what is true of the store and of the rules is found here, what is
true of processes in the tests that have some.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from foundation.clock import SystemClock
from foundation.engines.testing import fresh_database
from foundation.settings import PostgresUrl
from foundation.store.opening import open_store
from foundation.store.schemas import REGISTRY
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from services.registry.broker import failures
from services.registry.broker.examining import Examination, Finding
from services.registry.broker.preparing import Opinion
from services.registry.broker.serving import Served
from services.registry.catalogue.versions import Range, Version
from services.registry.connections.applying import Applier
from services.registry.connections.book import ConnectionBook
from services.registry.connections.changing import Changing
from services.registry.connections.drafts import Drafts
from services.registry.connections.ending import Ender
from services.registry.connections.many import Many
from services.registry.connections.picture import Picture
from services.registry.connections.releasing import Releaser
from services.registry.connections.resting import Resting
from services.registry.recording import Change
from tests.services.registry.conftest import PASSWORDS, TEMPLATE
from tieline.plugin.v1.manifest_pb2 import CredentialSlot, Manifest

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"word": {"type": "string"}, "list": {"type": "array"}, "deep": {"type": "object"}},
}


def manifest(version: str = "1.0.0") -> Manifest:
    told = Manifest(name="played", version=version, settings_schema=json.dumps(SCHEMA).encode())
    told.credential_slots.add(name="api", uses=[CredentialSlot.USE_CALL])
    told.credential_slots.add(name="webhook", uses=[CredentialSlot.USE_VERIFY])
    told.webhooks.add(name="events")
    return told


@dataclass
class Played:
    """A plugin that takes what is not `forbidden`, and a provider that grants what it grants."""

    missing: dict[str, set[str]] = field(default_factory=dict)
    """Scopes that the provider has not granted, by credential."""
    held: set[str] = field(default_factory=set)
    manifest: Manifest = field(default_factory=manifest)

    # as the host

    @property
    def catalogue(self) -> Any:
        version = SimpleNamespace(version=Version.parse(self.manifest.version))
        versions = {"played": [version]}
        return SimpleNamespace(content=SimpleNamespace(versions=lambda name: versions.get(name, [])))

    def everything(self) -> Iterable[Any]:
        return ()

    def route(self, served: Served) -> Any:
        return SimpleNamespace(manifest=self.manifest, name=served.plugin)

    # as the broker

    @property
    def examining(self) -> Played:
        return self

    @property
    def calls(self) -> Any:
        return SimpleNamespace(preparation=self)

    @contextmanager
    def about(self, _: Served) -> Iterator[None]:
        yield

    async def release(self, _: Any, instance: str) -> None:
        self.held.discard(instance)

    async def opinion(self, served: Served, _: Any = None) -> Opinion:
        return Opinion(await self.initialize(served))

    async def initialize(self, served: Served, *, validate_only: bool = True) -> Any:
        assert validate_only
        word = json.loads(served.settings).get("word")
        return failures.invalid_config("NO", "that word is forbidden") if word == "forbidden" else None

    async def examine(self, _: Any, served: Served) -> Examination:
        told = Examination([Finding("settings")])
        self.held.add(served.instance)
        for binding in served.bindings:
            for scope in sorted(self.missing.get(binding.credential, ())):
                why = failures.permission_denied("SCOPE_MISSING", f"the scope {scope} is missing")
                told.findings.append(Finding(f"scope {scope}", why))
        word = json.loads(served.settings).get("word", "")
        if word == "sick":
            told.findings.append(Finding("health", failures.invalid_config("SICK", "it has a fever")))
        return told


@dataclass
class Vault:
    """Grants what it is asked for."""

    granted: list[str] = field(default_factory=list)

    async def give(self, wish: Any) -> None:
        self.granted.append(wish.subject)

    async def end(self, connection: str, kept: Any = (), *, settled: float = 0.0) -> None:
        if not kept and not settled:
            self.granted = [one for one in self.granted if one != connection]

    async def end_of_app(self, app: str, owner: str, kept: Any = ()) -> None:
        await self.end(app, kept)
        assert owner


@dataclass
class Recorded:
    changes: list[tuple[str, str]] = field(default_factory=list)

    @asynccontextmanager
    async def making(self, *changes: Change) -> AsyncIterator[None]:
        self.changes += [(change.action, change.resource) for change in changes]
        yield


@dataclass
class World:
    admin: DatabaseUrl
    own: Store
    plugin: Played
    vault: Vault
    recorded: Recorded
    book: ConnectionBook
    changing: Changing
    resting: Resting
    many: Many
    picture: Picture


@asynccontextmanager
async def world(postgres: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        admin = DatabaseUrl.parse(await open_(fresh_database(postgres, TEMPLATE)))
        own, worker = [
            await open_(open_store(PostgresUrl(admin.login(role, PASSWORDS[role]).reveal()), REGISTRY))
            for role in (REGISTRY.service, REGISTRY.worker)
        ]
        plugin, vault, recorded, clock = Played(), Vault(), Recorded(), SystemClock()
        host: Any = _AsHost(plugin)
        broker = cast("Any", plugin)
        picture = await open_(Picture(worker))
        applier = await open_(Applier(worker, host, broker, picture, clock))
        releaser = Releaser(host, broker, picture, clock)
        ender = await open_(
            Ender(worker=worker, grants=vault, releaser=releaser, picture=picture, clock=clock)
        )
        book = ConnectionBook(
            own=own,
            drafts=Drafts(host, broker),
            picture=picture,
            applier=applier,
            flags=_no_flags,
            grants=vault,
            recorder=recorded,
            clock=clock,
        )
        changing = Changing(book)
        resting = Resting(book, host, broker, ender)
        many = Many(book, changing)
        yield World(admin, own, plugin, vault, recorded, book, changing, resting, many, picture)


async def _no_flags(_plugin: str, _connection: str) -> list[str]:
    return []


class _AsHost:
    """The played plugin, as the host tells of it."""

    def __init__(self, plugin: Played) -> None:
        self._plugin = plugin
        self.catalogue, self.everything, self.route = plugin.catalogue, plugin.everything, plugin.route

    def manifest(self, plugin: str, version_range: str = "") -> Manifest | None:
        there = plugin == "played"
        admitted = Range.parse(version_range).admits(Version.parse(self._plugin.manifest.version))
        return self._plugin.manifest if there and admitted else None
