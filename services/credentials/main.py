"""The credentials service: opened here in the order in which it depends on things, closed in reverse."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog

from foundation.clock import RandomIds, SystemClock
from foundation.errors import Code, Problem
from foundation.identity import TokenVerifier
from foundation.notices import NoticeRelay
from foundation.rpc import RpcServer, serving
from foundation.settings import run
from foundation.store.opening import check_schema, open_store
from foundation.store.schemas import CREDENTIALS
from foundation.store.unit_of_work import Store
from foundation.telemetry import Metrics, Readiness, configure_logs
from services.credentials.audit.denials import Denials
from services.credentials.audit.journal import Journal
from services.credentials.audit.recorder import Recorder
from services.credentials.audit.servicer import AuditServicer
from services.credentials.credential.book import Book
from services.credentials.credential.cover import Cover
from services.credentials.credential.granting import GrantBook
from services.credentials.credential.keeping import Keeper
from services.credentials.credential.servicer import CredentialServicer
from services.credentials.identities.api_tokens import Exchange
from services.credentials.identities.directory import DirectoryFile, Following
from services.credentials.identities.issuing import Issuing
from services.credentials.identities.removal import Removal
from services.credentials.identities.signing import SigningKeys
from services.credentials.identities.start_tokens import admit_start_tokens
from services.credentials.identities.tenant_picture import TenantPicture
from services.credentials.identities.tenant_servicer import TenantServicer
from services.credentials.identities.tenants import TenantBook
from services.credentials.identities.token_servicer import TokenServicer
from services.credentials.identities.user_servicer import UserServicer
from services.credentials.identities.users import UserBook
from services.credentials.keys.keepers import open_root_keys
from services.credentials.keys.key_servicer import KeyServicer
from services.credentials.keys.root_rotation import RootRotation
from services.credentials.keys.rotation import KeyRotation
from services.credentials.keys.vault import Vault
from services.credentials.leases.changes import Changes
from services.credentials.leases.lending import Lending
from services.credentials.leases.servicer import LeaseServicer
from services.credentials.renewal.oauth_servicer import OauthServicer
from services.credentials.renewal.opening import open_renewal
from services.credentials.renewal.recovery import Recovery
from services.credentials.settings import CredentialsSettings
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

log = structlog.get_logger(__name__)


async def serve(settings: CredentialsSettings, stop: asyncio.Event) -> None:
    configure_logs("credentials", settings.log_level, settings.log_format)
    clock, ids, metrics = SystemClock(), RandomIds(), Metrics("credentials")
    async with AsyncExitStack() as stack:
        open_ = stack.enter_async_context
        roots = await open_root_keys(settings, stack)
        store = await open_(open_store(settings.database_url, CREDENTIALS))
        worker = await open_(open_store(settings.worker_database_url, CREDENTIALS))
        vault = Vault(roots, store)
        journal = Journal(vault, clock)
        keys = SigningKeys(clock, store, vault, journal)
        root_rotation = RootRotation(roots, store, worker, journal)
        rotation = KeyRotation(store, worker, vault, journal)
        tenants = TenantBook(vault, journal)
        picture = await open_(TenantPicture(store, vault.keep_only))
        issuing, exchange = Issuing(store, journal, clock, ids), Exchange(store, worker)
        recorder = await open_(Recorder(store, journal))
        denials = await open_(Denials(recorder, clock))
        changes = await open_(Changes(worker, clock))
        renewals, consents = await open_(
            open_renewal(settings, store, worker, vault, journal, clock=clock, registry=metrics.registry)
        )
        lending = Lending(store, vault, renewals, recorder, denials, clock, ids)
        book = Book(store, vault, journal, renewals, clock, allow_http=settings.allow_http_providers)
        grants = GrantBook(store, journal, clock, ids)
        cover = await open_(Cover(worker))

        def add(server: RpcServer) -> None:
            # Methods that a servicer leaves out answer UNIMPLEMENTED, by their generated base.
            server.add(
                tenants_pb2_grpc.add_TenantServiceServicer_to_server, TenantServicer(store, tenants, picture)
            )
            server.add(
                identities_pb2_grpc.add_UserServiceServicer_to_server,
                UserServicer(store, UserBook(store, worker, journal), ids),
            )
            server.add(
                tokens_pb2_grpc.add_TokenServiceServicer_to_server,
                TokenServicer(store, issuing, exchange, keys, clock),
            )
            server.add(keys_pb2_grpc.add_KeyServiceServicer_to_server, KeyServicer(rotation, root_rotation))
            server.add(
                credentials_pb2_grpc.add_CredentialServiceServicer_to_server,
                CredentialServicer(store, book, grants, cover, clock),
            )
            server.add(
                leases_pb2_grpc.add_LeaseServiceServicer_to_server,
                LeaseServicer(lending, journal, changes),
            )
            server.add(oauth_pb2_grpc.add_OauthServiceServicer_to_server, OauthServicer(consents))
            server.add(
                audit_pb2_grpc.add_AuditServiceServicer_to_server,
                AuditServicer(store, journal, keys, clock),
            )

        await open_(
            serving(
                "credentials",
                settings,
                readiness=Readiness(
                    {
                        "postgres": partial(check_schema, store),
                        "postgres (worker)": partial(check_schema, worker),
                        "keys": keys.check,
                        "leases": changes.check,
                    }
                ),
                authenticator=TokenVerifier(keys, clock),
                add_servicers=add,
                metrics=metrics,
            )
        )
        await _unlock(store, root_rotation, keys, journal, settings.start_tokens)
        # What goes on without anybody asking; each can be killed at any moment and is carried on by any replica.
        await open_(keys)
        await open_(root_rotation)
        await open_(rotation)
        await open_(Removal(store, journal))
        if settings.tenant_directory:
            directory = DirectoryFile(Path(settings.tenant_directory))
            await open_(Following(directory, store, tenants, picture))
        if settings.nats_url is not None:
            await open_(NoticeRelay("credentials", settings.nats_url, worker))
        await open_(Recovery(worker, renewals, clock))
        await open_(Keeper(store, worker, book, journal, clock))
        await stop.wait()
        # Watchers wait for changes for ever; without this word the drain would wait for them.
        picture.stop_watching()
        cover.stop_watching()
        changes.stop_watching()


async def _unlock(
    store: Store, root: RootRotation, keys: SigningKeys, journal: Journal, start_tokens: str | None
) -> None:
    """Once the database is there: the right root key, the signing keys, the tokens we are born with."""
    while True:
        try:
            await check_schema(store)
            await root.check()
            if start_tokens:
                await admit_start_tokens(store, start_tokens)
            await journal.load()
            await root.promote()
            await keys.load()
        except Problem as problem:
            if problem.code not in (Code.DEPENDENCY_UNAVAILABLE, Code.SCHEMA_OUTDATED):
                raise
            log.info("waiting", why=problem.sentence)
            await asyncio.sleep(0.1)
        else:
            return


def main() -> None:
    run("credentials", CredentialsSettings, serve)
