"""Renewal put together: what leases and people ask of it, over one way to each provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from foundation.clock import Clock
from foundation.store.unit_of_work import Store
from services.credentials.audit.journal import Journal
from services.credentials.keys.vault import Vault
from services.credentials.renewal.claims import Claims
from services.credentials.renewal.consent import Consents
from services.credentials.renewal.measuring import RefreshMetrics
from services.credentials.renewal.mechanisms import open_mechanisms
from services.credentials.renewal.plain import Plain
from services.credentials.renewal.renewals import Renewing
from services.credentials.settings import CredentialsSettings


@asynccontextmanager
async def open_renewal(
    settings: CredentialsSettings,
    store: Store,
    worker: Store,
    vault: Vault,
    journal: Journal,
    *,
    clock: Clock,
    registry: CollectorRegistry,
) -> AsyncIterator[tuple[Renewing, Consents]]:
    claims, metrics = Claims(store, vault, journal, clock), RefreshMetrics(registry)
    async with (
        open_mechanisms(settings, clock) as ways,
        Renewing(claims, Plain(store), ways, metrics=metrics, clock=clock) as renewals,
    ):
        url = settings.public_url
        yield (
            renewals,
            Consents(store, worker, vault, journal, oauth=ways.oauth_code, clock=clock, public_url=url),
        )
