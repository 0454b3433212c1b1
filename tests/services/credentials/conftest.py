"""The credentials service itself, on a database of its own, spoken to over its real socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import pytest

from cli.ask import ask
from foundation.engines.testing import Served, fresh_database, served
from foundation.identity.session import Session
from foundation.process.ports import Port
from foundation.rpc import connect
from foundation.settings import Address, NatsUrl, PostgresUrl
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.schemas import CREDENTIALS
from foundation.store.url import DatabaseUrl
from services.credentials.main import serve
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.aws import absent_aws, aws
from tieline.credentials.v1 import (
    audit_pb2_grpc,
    credentials_pb2_grpc,
    identities_pb2_grpc,
    keys_pb2_grpc,
    leases_pb2_grpc,
    oauth_pb2_grpc,
    tenants_pb2_grpc,
    tokens_pb2_grpc,
)

__all__ = ["absent_aws", "aws"]

PASSWORDS = new_passwords([CREDENTIALS])
TEMPLATE = "credentials_template"
START = {
    "admin": ("tl_admin", "users/admin", "user", ["platform-admin"]),
    "gateway": ("tl_gateway", "services/gateway", "service", ["service", "ingest"]),
    "registry": ("tl_registry", "services/registry", "service", ["service"]),
    "mapper": ("tl_mapper", "services/mapper", "service", ["service"]),
}


@dataclass(frozen=True)
class Client:
    audit: audit_pb2_grpc.AuditServiceAsyncStub
    tenants: tenants_pb2_grpc.TenantServiceAsyncStub
    tokens: tokens_pb2_grpc.TokenServiceAsyncStub
    credentials: credentials_pb2_grpc.CredentialServiceAsyncStub
    leases: leases_pb2_grpc.LeaseServiceAsyncStub
    users: identities_pb2_grpc.UserServiceAsyncStub
    keys: keys_pb2_grpc.KeyServiceAsyncStub
    oauth: oauth_pb2_grpc.OauthServiceAsyncStub


@dataclass
class Running:
    address: str
    admin_url: str
    settings: CredentialsSettings
    stack: AsyncExitStack
    clients: dict[str | None, Client] = field(default_factory=dict)

    async def as_(self, api_token: str | None) -> Client:
        """Whoever holds that token, over one connection however often it is asked for."""
        if api_token not in self.clients:
            self.clients[api_token] = await self._open(api_token)
        return self.clients[api_token]

    async def _open(self, api_token: str | None) -> Client:
        plain = await self.stack.enter_async_context(connect(self.address))
        session = Session(plain, api_token) if api_token else None
        channel = await self.stack.enter_async_context(
            connect(self.address, session.token if session else None)
        )
        return Client(
            audit_pb2_grpc.AuditServiceStub(channel),
            tenants_pb2_grpc.TenantServiceStub(channel),
            tokens_pb2_grpc.TokenServiceStub(channel),
            credentials_pb2_grpc.CredentialServiceStub(channel),
            leases_pb2_grpc.LeaseServiceStub(channel),
            identities_pb2_grpc.UserServiceStub(channel),
            keys_pb2_grpc.KeyServiceStub(channel),
            oauth_pb2_grpc.OauthServiceStub(channel),
        )

    async def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """As a superuser: what an attacker with the database could do."""
        connection = await asyncpg.connect(self.admin_url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def engines() -> Iterator[Served]:
    with served() as engines:
        asyncio.run(_prepare(engines.postgres))
        yield engines


async def _prepare(postgres: str) -> None:
    """Migrated once; each test's database is a copy."""
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"create database {TEMPLATE}")
    await connection.close()
    admin = DatabaseUrl.parse(urlunsplit(urlsplit(postgres)._replace(path=f"/{TEMPLATE}")))
    await bootstrap(admin, PASSWORDS, [CREDENTIALS])
    await migrate(admin, [CREDENTIALS])


@pytest.fixture
async def settings(engines: Served, tmp_path: Path) -> AsyncIterator[tuple[CredentialsSettings, str]]:
    tokens = [
        {"sha256": hashlib.sha256(token.encode()).hexdigest(), "name": name, "kind": kind, "roles": roles}
        for token, name, kind, roles in START.values()
    ]
    (tmp_path / "start.json").write_text(json.dumps(tokens))
    async with fresh_database(engines.postgres, TEMPLATE) as url:
        admin = DatabaseUrl.parse(url)
        login, worker = (admin.login(role, PASSWORDS[role]) for role in CREDENTIALS.logins)
        with Port() as grpc, Port() as http:
            yield (
                CredentialsSettings(
                    listen=Address(grpc.host, grpc.number),
                    http=Address(http.host, http.number),
                    database_url=PostgresUrl(login.reveal()),
                    worker_database_url=PostgresUrl(worker.reveal()),
                    nats_url=NatsUrl(engines.nats),
                    root_key_file=str(tmp_path / "root-key"),
                    start_tokens=str(tmp_path / "start.json"),
                    log_level="error",
                    drain_seconds=1,
                ),
                url,
            )


@asynccontextmanager
async def started(settings: CredentialsSettings, admin_url: str) -> AsyncIterator[Running]:
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, stop))
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(60):
                while not (await ask(settings.http.host, settings.http.port)).ready:
                    if serving.done():
                        await serving
                    await asyncio.sleep(0.01)
            yield Running(str(settings.listen), admin_url, settings, stack)
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def replica(first: Running, **changed: Any) -> AsyncIterator[Running]:
    """Another process's worth of the service on the same database."""
    with Port() as grpc, Port() as http:
        addresses = {"listen": Address(grpc.host, grpc.number), "http": Address(http.host, http.number)}
        settings = msgspec.structs.replace(first.settings, **(addresses | changed))
        async with started(settings, first.admin_url) as second:
            yield second


@pytest.fixture
async def running(settings: tuple[CredentialsSettings, str]) -> AsyncIterator[Running]:
    async with started(*settings) as running:
        yield running


@pytest.fixture
async def admin(running: Running) -> Client:
    return await running.as_("tl_admin")


@pytest.fixture
async def gateway(running: Running) -> Client:
    return await running.as_("tl_gateway")


@pytest.fixture
async def registry(running: Running) -> Client:
    return await running.as_("tl_registry")
