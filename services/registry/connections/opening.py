"""Connections, put together: what people do with them, and what goes on without anybody asking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from foundation.store.unit_of_work import Store
from services.registry.apps import store as apps
from services.registry.apps.app import App, FindApp
from services.registry.connections.applying import Applier
from services.registry.connections.book import ConnectionBook
from services.registry.connections.changing import Changing
from services.registry.connections.checking import Checking
from services.registry.connections.drafts import Drafts
from services.registry.connections.ending import Ender, Removal
from services.registry.connections.grants import VaultGrants
from services.registry.connections.many import Many
from services.registry.connections.migrating import Migrator
from services.registry.connections.proving import Prover
from services.registry.connections.releasing import Releaser
from services.registry.connections.resting import Resting
from services.registry.connections.servicer import Parts
from services.registry.connections.suspending import Suspender
from services.registry.flags.following import Follower
from services.registry.ground import Ground


@dataclass(frozen=True, slots=True)
class Connections:
    people: Parts
    """What people ask for."""
    drafts: Drafts
    removals: list[Removal]
    """What each room takes along when a connection ends, in this order: rooms add theirs."""
    follower: Follower
    """What has connections follow their flags."""


def _apps(own: Store) -> FindApp:
    async def find(name: str) -> App | None:
        async with own.unit_of_work(tenants=(), read_only=True) as work:
            return await apps.get(work, name.removeprefix("apps/"))

    return find


@asynccontextmanager
async def connecting(on: Ground) -> AsyncIterator[Connections]:
    worker, host, broker, picture, clock = on.worker, on.host, on.broker, on.picture, on.clock
    grants, drafts = VaultGrants(on.vault), Drafts(host, broker, _apps(on.own))
    removals: list[Removal] = []
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        applier = await open_(Applier(worker, host, broker, picture, clock))
        await open_(Suspender(on.vault, worker, picture, clock))
        await open_(
            Migrator(
                worker=worker,
                host=host,
                broker=broker,
                drafts=drafts,
                picture=picture,
                applier=applier,
                recorder=on.recorder,
                clock=clock,
            )
        )
        prover = await open_(Prover(worker, host, broker, picture, clock))
        releaser = await open_(Releaser(host, broker, picture, clock))
        ender = await open_(
            Ender(
                worker=worker,
                grants=grants,
                releaser=releaser,
                picture=picture,
                clock=clock,
                removals=removals,
            )
        )
        follower = await open_(Follower(worker, on.recorder, applier, picture, clock))
        book = ConnectionBook(
            own=on.own,
            drafts=drafts,
            picture=picture,
            applier=applier,
            grants=grants,
            flags=follower.flags_of,
            recorder=on.recorder,
            clock=clock,
        )
        changing = Changing(book)
        people = Parts(
            book,
            changing,
            Resting(book, host, broker, ender),
            Many(book, changing),
            Checking(book, host, broker, prover),
        )
        yield Connections(people, drafts, removals, follower)
