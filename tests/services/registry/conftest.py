"""The registry itself on a database of its own, with the vault's side of the contract played by the smallest servicer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import pytest
from joserfc.jwk import OKPKey
from opentelemetry import trace

from cli.ask import ask
from foundation.clock import RandomIds, SystemClock
from foundation.engines.testing import Served, fresh_database, served
from foundation.errors import Code, Problem
from foundation.identity import Kind, Principal, Role, TokenSigner, TokenVerifier
from foundation.process.ports import Port
from foundation.rpc import Connection, RpcServer, connect
from foundation.rpc.call import caller
from foundation.settings import Address, NatsUrl, PostgresUrl
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.migrate import migrate
from foundation.store.schemas import MAPPER as INBOX
from foundation.store.schemas import REGISTRY
from foundation.store.url import DatabaseUrl
from foundation.telemetry import Metrics
from services.registry.main import serve
from services.registry.settings import RegistrySettings
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.common.v1.failure_pb2 import FAILURE_KIND_PERMISSION_DENIED, Failure
from tieline.credentials.v1 import (
    audit_pb2_grpc,
    credentials_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from tieline.credentials.v1 import credentials_pb2 as vault_pb
from tieline.credentials.v1.audit_pb2 import AuditRecord, RecordAuditRequest, RecordAuditResponse
from tieline.mapper.v1 import inbox_pb2, inbox_pb2_grpc

# ruff: noqa: N802  the contract's names

PASSWORDS = new_passwords([INBOX, REGISTRY])
TEMPLATE = "registry_template"
KEY = OKPKey.generate_key("Ed25519")

ADMIN = Principal(Kind.USER, "users/ada", tenant_roles={"acme": frozenset({Role.TENANT_ADMIN})})
VIEWER = Principal(Kind.USER, "users/eve", tenant_roles={"acme": frozenset({Role.VIEWER})})
FOREIGN = Principal(Kind.USER, "users/mallory", tenant_roles={"other": frozenset({Role.TENANT_ADMIN})})
OPERATOR = Principal(Kind.USER, "users/bob", tenant_roles={"acme": frozenset({Role.OPERATOR})})
GATEWAY = Principal(Kind.SERVICE, "services/gateway", platform_roles=frozenset({Role.INGEST, Role.SERVICE}))
OURSELVES = Principal(Kind.SERVICE, "services/registry", platform_roles=frozenset({Role.SERVICE}))
MAPPER = Principal(Kind.SERVICE, "services/mapper", platform_roles=frozenset({Role.SERVICE}))


class OneKey:
    def key(self, kid: str) -> OKPKey | None:
        return KEY if kid == KEY.thumbprint() else None


def token_for(principal: Principal) -> str:
    return TokenSigner(KEY, SystemClock()).sign(principal, timedelta(minutes=5))


class Tokens(tokens_pb2_grpc.TokenServiceServicer):
    async def ExchangeToken(self, request: Any, _: Any) -> tokens_pb2.ExchangeTokenResponse:
        who = OPERATOR if request.api_token == "tl_operator" else OURSELVES
        answer = tokens_pb2.ExchangeTokenResponse(access_token=token_for(who))
        answer.expire_time.FromDatetime(SystemClock().now() + timedelta(minutes=5))
        return answer

    async def GetSigningKeys(self, _request: Any, _: Any) -> tokens_pb2.GetSigningKeysResponse:
        jwks = json.dumps({"keys": [KEY.as_dict(private=False)]})
        return tokens_pb2.GetSigningKeysResponse(jwks=jwks.encode())


@dataclass
class Vault(credentials_pb2_grpc.CredentialServiceServicer):
    """Grants what is asked for, by the caller's right, for the credentials that there are."""

    credentials: set[str] = field(default_factory=lambda: {"tenants/acme/credentials/hook"})
    kinds: dict[str, CredentialKind.ValueType] = field(default_factory=dict)
    granted: dict[str, tuple[str, vault_pb.Grant]] = field(default_factory=dict)

    tokens: dict[str, bytes] = field(default_factory=dict)
    """What is lent of a credential."""
    away: bool = False

    told: vault_pb.WatchCredentialStatesResponse | None = None
    turned: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, **states: vault_pb.Credential.State.ValueType) -> None:
        """Every credential of acme that a grant covers, and how it stands."""
        self.told = vault_pb.WatchCredentialStatesResponse()
        for name, state in states.items():
            self.told.states.add(credential=f"tenants/acme/credentials/{name}", state=state)
        self.turned.set()

    async def WatchCredentialStates(
        self, _: Any, __: Any
    ) -> AsyncIterator[vault_pb.WatchCredentialStatesResponse]:
        while True:
            await self.turned.wait()
            self.turned.clear()
            if self.told is not None:
                yield self.told

    async def GetCredential(self, request: vault_pb.GetCredentialRequest, _: Any) -> vault_pb.Credential:
        if request.name not in self.credentials:
            raise Problem(Code.NOT_FOUND, what=f"credential {request.name}")
        return vault_pb.Credential(
            name=request.name, kind=self.kinds.get(request.name, CredentialKind.CREDENTIAL_KIND_UNSPECIFIED)
        )

    async def CreateGrant(self, request: vault_pb.CreateGrantRequest, _: Any) -> vault_pb.Grant:
        if request.parent not in self.credentials:
            raise Problem(Code.NOT_FOUND, what=f"credential {request.parent}")
        request.grant.name = f"{request.parent}/grants/{request.request_id}"
        self.granted[request.request_id] = (caller().name, request.grant)
        return request.grant

    async def EndGrants(self, request: vault_pb.EndGrantsRequest, _: Any) -> vault_pb.EndGrantsResponse:
        if self.away:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="postgres", why="it is away")
        assert caller().name == OURSELVES.name
        kept = {(one.slot, one.entry, one.credential) for one in request.kept}
        for id_, (_who, grant) in list(self.granted.items()):
            of = (grant.slot, grant.entry, credential_of(grant))
            if (grant.connection, grant.app) == (request.connection, request.app) and of not in kept:
                del self.granted[id_]
        return vault_pb.EndGrantsResponse()


def credential_of(grant: vault_pb.Grant) -> str:
    return grant.name.partition("/grants/")[0]


@dataclass
class Leases(leases_pb2_grpc.LeaseServiceServicer):
    """Lends what is granted: a token for each credential, which is its name unless the test says otherwise."""

    vault: Vault

    async def AcquireLeases(self, request: Any, _: Any) -> leases_pb2.AcquireLeasesResponse:
        answer = leases_pb2.AcquireLeasesResponse()
        for one in request.requests:
            outcome = answer.outcomes.add()
            found = [
                credential_of(grant)
                for _who, grant in self.vault.granted.values()
                if (grant.connection or grant.app, grant.slot, grant.entry)
                == (one.subject, one.slot, one.entry)
                and one.credential in ("", credential_of(grant))
            ]
            if not found:
                outcome.failure.CopyFrom(
                    Failure(kind=FAILURE_KIND_PERMISSION_DENIED, reason="GRANT_MISSING", message="no grant")
                )
                continue
            secret = outcome.secret
            secret.kind = self.vault.kinds.get(found[-1], CredentialKind.CREDENTIAL_KIND_BEARER_TOKEN)
            secret.fields["token"] = self.vault.tokens.get(found[-1], found[-1].encode())
            secret.lease.name = f"{found[-1]}/leases/{one.subject.rpartition('/')[2]}"
            secret.lease.version.version = 1
            secret.lease.expire_time.FromDatetime(SystemClock().now() + timedelta(minutes=10))
        return answer

    async def WatchLeases(self, _: Any, __: Any) -> AsyncIterator[leases_pb2.WatchLeasesResponse]:
        await asyncio.Event().wait()
        yield leases_pb2.WatchLeasesResponse()


@dataclass
class Audit(audit_pb2_grpc.AuditServiceServicer):
    """Keeps what it is told, in order; or says that it cannot."""

    records: list[AuditRecord] = field(default_factory=list)
    away: bool = False

    async def RecordAudit(self, request: RecordAuditRequest, _: Any) -> RecordAuditResponse:
        if self.away:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="postgres", why="it is away")
        assert request.request_id
        first = len(self.records) + 1
        self.records.extend(request.records)
        return RecordAuditResponse(sequences=range(first, len(self.records) + 1))

    @property
    def said(self) -> list[tuple[str, str, str]]:
        """Action, resource and outcome of each."""
        return [
            (one.action, one.resource, AuditRecord.Outcome.Name(one.outcome).removeprefix("OUTCOME_"))
            for one in self.records
        ]


@dataclass
class Mapper(inbox_pb2_grpc.InboxServiceServicer):
    """Says what waits."""

    backlogs: list[inbox_pb2.Backlog] = field(default_factory=list)

    async def ListBacklogs(self, _: inbox_pb2.ListBacklogsRequest, __: Any) -> inbox_pb2.ListBacklogsResponse:
        return inbox_pb2.ListBacklogsResponse(backlogs=self.backlogs)


@dataclass
class Running:
    settings: RegistrySettings
    vault: Vault
    audit: Audit
    mapper: Mapper
    admin: DatabaseUrl
    stopping: asyncio.Event

    def as_(self, principal: Principal) -> AbstractAsyncContextManager[Connection]:
        async def token() -> str:
            return token_for(principal)

        return connect(str(self.settings.listen), token)

    def beside(self) -> Running:
        """Another replica, on the same database."""
        with Port() as grpc, Port() as http:
            own = {"listen": Address.parse(grpc.address), "http": Address.parse(http.address)}
        settings = msgspec.structs.replace(self.settings, **own)
        return dataclasses.replace(self, settings=settings, stopping=asyncio.Event())

    async def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.admin.reveal())
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
    """Migrated once, with the mapper's schema for whoever polls into it; each test's database is a copy."""
    connection = await asyncpg.connect(postgres)
    await connection.execute(f"create database {TEMPLATE}")
    await connection.close()
    admin = DatabaseUrl.parse(urlunsplit(urlsplit(postgres)._replace(path=f"/{TEMPLATE}")))
    await bootstrap(admin, PASSWORDS, [INBOX, REGISTRY])
    await migrate(admin, [INBOX, REGISTRY])


@pytest.fixture
async def registry(engines: Served, tmp_path: Path) -> AsyncIterator[Running]:
    async with prepared(engines, tmp_path) as running:
        task = asyncio.create_task(serve(running.settings, running.stopping))
        try:
            await ready(running, task)
            yield running
        finally:
            running.stopping.set()
            await task


@asynccontextmanager
async def prepared(engines: Served, where: Path) -> AsyncIterator[Running]:
    """All that a registry needs, without the registry."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(engines.postgres, TEMPLATE))
        admin = DatabaseUrl.parse(database)
        await bootstrap(admin, PASSWORDS, [REGISTRY])  # who may do what in a database is not copied with it
        vault = Vault()  # type: ignore[abstract]  # it grants, and no more
        audit = Audit()  # type: ignore[abstract]  # it records, and no more
        mapper = Mapper()  # type: ignore[abstract]
        address = await stack.enter_async_context(_neighbours(vault, audit, mapper))
        token = where / "token"
        token.touch(0o600)
        token.write_text("tl_registry\n")
        http, grpc = stack.enter_context(Port()), stack.enter_context(Port())
        settings = RegistrySettings(
            listen=Address.parse(grpc.address),
            http=Address.parse(http.address),
            credentials=address,
            mapper=address,
            database_url=PostgresUrl(admin.login(REGISTRY.service, PASSWORDS[REGISTRY.service]).reveal()),
            worker_database_url=PostgresUrl(
                admin.login(REGISTRY.worker, PASSWORDS[REGISTRY.worker]).reveal()
            ),
            nats_url=NatsUrl(engines.nats),
            token_file=str(token),
            public_url="https://hooks.acme.example/",
            plugins=(str(where / "plugins"),),
            log_level="error",
            drain_seconds=1.0,
        )
        yield Running(settings, vault, audit, mapper, admin, asyncio.Event())


async def ready(running: Running, task: asyncio.Task[None] | None = None) -> None:
    http = running.settings.http
    async with asyncio.timeout(60):
        while not (await ask(http.host, http.port)).ready:
            if task is not None and task.done():
                await task
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _neighbours(vault: Vault, audit: Audit, mapper: Mapper) -> AsyncIterator[Address]:
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("vault"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0.1,
    )
    server.add(tokens_pb2_grpc.add_TokenServiceServicer_to_server, Tokens())  # type: ignore[abstract]
    server.add(credentials_pb2_grpc.add_CredentialServiceServicer_to_server, vault)
    server.add(leases_pb2_grpc.add_LeaseServiceServicer_to_server, Leases(vault))  # type: ignore[abstract]
    server.add(audit_pb2_grpc.add_AuditServiceServicer_to_server, audit)
    server.add(inbox_pb2_grpc.add_InboxServiceServicer_to_server, mapper)
    async with server:
        await server.set_ready(True)
        yield server.address
