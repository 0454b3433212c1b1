"""Audited leases per second, 64 asked for at once, every commit fsynced.

A repeat is a lease that its holder has already; a cold one is written. The first line is how Tieline does it:
what waits for the audit goes together in one transaction. The control records nothing.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.kit.measure import Line, interleaved
from bench.kit.postgres import postgres
from foundation.clock import RandomIds, SystemClock
from foundation.settings import PostgresUrl
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.opening import open_store
from foundation.store.schemas import CREDENTIALS
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from services.credentials.audit.denials import Denials
from services.credentials.audit.entry import Entry
from services.credentials.audit.journal import Journal
from services.credentials.audit.recorder import Recorder
from services.credentials.credential import kinds
from services.credentials.credential import store as credentials
from services.credentials.credential.kinds import Rules
from services.credentials.credential.store import CredentialRow, GrantRow, VersionRow
from services.credentials.identities.store.tenants import TenantRow
from services.credentials.identities.tenants import TenantBook
from services.credentials.keys.key_file import KeyFile
from services.credentials.keys.root_keys import RootKeys
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.vault import Holding, Vault
from services.credentials.leases.asking import Wanted
from services.credentials.leases.lending import Lending
from services.credentials.leases.store import Client
from services.credentials.renewal.plain import Plain
from services.credentials.rows import run as execute
from tieline.credentials.v1.credentials_pb2 import PURPOSE_WEBHOOK_VERIFY
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret

TENANTS, CONNECTIONS = 4, 256
AT_ONCE, SECONDS = 64, 2.0
GATEWAY = Client("services/gateway")


class OneEach(Recorder):
    """A transaction for every request."""

    async def record(self, *entries: Entry) -> list[int]:
        async with self._store.unit_of_work(tenants={entry.tenant for entry in entries}) as work:
            return [record.sequence for record in await self._journal.append(work, *entries)]


class Nothing(Recorder):
    """The control."""

    async def record(self, *entries: Entry) -> list[int]:
        return [0] * len(entries)


@dataclass(frozen=True)
class Room:
    """Where the database and the root key are."""

    service: DatabaseUrl
    worker: DatabaseUrl
    root_key: Path


def run() -> list[Line]:
    passwords = new_passwords([CREDENTIALS])
    with postgres() as admin, tempfile.TemporaryDirectory(prefix="tl-bench-", dir="/tmp") as directory:
        service, worker = (admin.login(role, passwords[role]) for role in CREDENTIALS.logins)
        room = Room(service, worker, Path(directory) / "root-key")
        asyncio.run(prepare(admin, passwords, room))
        ways = {
            "repeat, group commit": partial(rate, room, Recorder, cold=False),
            "repeat, a transaction for each": partial(rate, room, OneEach, cold=False),
            "repeat, control without audit": partial(rate, room, Nothing, cold=False),
            "cold, group commit": partial(rate, room, Recorder, cold=True),
            "cold, a transaction for each": partial(rate, room, OneEach, cold=True),
            "cold, control without audit": partial(rate, room, Nothing, cold=True),
        }
        rate(room, Recorder, cold=True)  # the first seconds belong to files that grow
        return interleaved(ways, unit="leases/s")


def rate(room: Room, recorder: type[Recorder], *, cold: bool) -> float:
    return asyncio.run(_rate(room, recorder, cold=cold))


async def _rate(room: Room, recorder: type[Recorder], *, cold: bool) -> float:
    async with opened(room, recorder) as (store, lending):
        if cold:
            await forget(store)
        else:
            await asyncio.gather(*(lending.lend(GATEWAY, [wanted(number)]) for number in range(CONNECTIONS)))
        numbers, given = iter(range(10_000_000)), 0
        started = time.perf_counter()

        async def ask() -> None:
            nonlocal given
            while time.perf_counter() - started < SECONDS:
                number = next(numbers)
                if cold and number % CONNECTIONS == 0 and number:
                    await forget(store)
                [outcome] = await lending.lend(GATEWAY, [wanted(number % CONNECTIONS)])
                assert outcome.HasField("secret"), outcome
                given += 1

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        return given / (time.perf_counter() - started)


def wanted(number: int) -> Wanted:
    return Wanted(
        subject=f"tenants/t{number % TENANTS}/connections/c{number}",
        slot="webhook",
        purpose=PURPOSE_WEBHOOK_VERIFY,
    )


async def forget(store: Store) -> None:
    async with store.unit_of_work(tenants=[f"t{number}" for number in range(TENANTS)]) as work:
        await execute(work, "delete from leases")


@asynccontextmanager
async def opened(room: Room, recorder: type[Recorder]) -> AsyncIterator[tuple[Store, Lending]]:
    clock, ids = SystemClock(), RandomIds()
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        store = await open_(open_store(PostgresUrl(room.service.reveal()), CREDENTIALS))
        worker = await open_(open_store(PostgresUrl(room.worker.reveal()), CREDENTIALS))
        roots = RootKeys(KeyFile(room.root_key))
        vault = Vault(roots, store)
        journal = Journal(vault, clock)
        await RootRotation(roots, store, worker, journal).check()
        await journal.load()
        recording = await open_(recorder(store, journal))
        denials = await open_(Denials(recording, clock))
        yield store, Lending(store, vault, Plain(store), recording, denials, clock, ids)


async def prepare(admin: DatabaseUrl, passwords: dict[str, str], room: Room) -> None:
    """Tenants with one webhook secret for each of their connections."""
    await bootstrap(admin, passwords, [CREDENTIALS])
    await migrate(admin, [CREDENTIALS])
    async with opened(room, Recorder) as (store, lending):
        journal = lending.recorder._journal  # noqa: SLF001 - opened a line above
        tenants = TenantBook(lending.vault, journal)
        for tenant in (f"t{number}" for number in range(TENANTS)):
            async with store.unit_of_work(tenants=[tenant]) as work:
                await tenants.create(work, TenantRow(id=tenant, title=tenant))
        for number in range(CONNECTIONS):
            await _entrust(store, lending.vault, number)


async def _entrust(store: Store, vault: Vault, number: int) -> None:
    tenant, credential = f"t{number % TENANTS}", f"hook-{number}"
    value = SecretValue(webhook_secret=WebhookSecret(secret=f"a secret of connection {number}"))
    accepted = kinds.accept(value, Rules(SystemClock().now()))
    row = CredentialRow(tenant=tenant, id=credential, title=credential, kind=accepted.kind)
    grant = GrantRow(
        tenant=tenant,
        id=f"g-{number}",
        credential=credential,
        holder=GATEWAY.name,
        subject=f"tenants/{tenant}/connections/c{number}",
        slot="webhook",
        entry="",
        purpose="WEBHOOK_VERIFY",
        author="users/bench",
    )
    async with store.unit_of_work(tenants=[tenant]) as work:
        await credentials.add_credential(work, row)
        sealed, key_version = await vault.seal(work, Holding(tenant, credential, 1), accepted.plain)
        version = VersionRow(
            tenant=tenant,
            credential=credential,
            version=1,
            key_version=key_version,
            author="users/bench",
            wrapped_key=sealed.wrapped_key,
            sealed=sealed.value,
        )
        await credentials.add_version(work, version)
        await credentials.put_grant(work, grant)
