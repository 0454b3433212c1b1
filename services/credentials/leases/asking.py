"""Who asks for what, before anything is looked up. What cannot be a question is refused here."""

from __future__ import annotations

import re

from foundation.identity import Principal
from foundation.identity.names import tenant_of
from services.credentials.credential.store import Use
from services.credentials.leases.store import Client
from services.credentials.leases.wire import Outcome, refused
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, FAILURE_KIND_PERMISSION_DENIED
from tieline.credentials.v1.credentials_pb2 import Purpose
from tieline.credentials.v1.leases_pb2 import AcquireLeasesRequest

PLUGIN_HOST = "services/registry"
"""The process that plugins run under: it asks for them, and nobody else does."""

LONGEST = 512

Wanted = AcquireLeasesRequest.LeaseRequest
_CONNECTION = re.compile(r"tenants/[^/\0]+/connections/[^/\0]+")
_APP = re.compile(r"apps/[^/\0]+")
_CREDENTIAL = re.compile(r"tenants/[^/\0]+/credentials/[^/\0]+")


def client_of(principal: Principal) -> Client:
    return Client(principal.name, hosts_plugins=principal.name == PLUGIN_HOST)


def use_of(client: Client, wanted: Wanted) -> Use | Outcome:
    """The use that a grant would have to allow, or why there can be none."""
    texts = (
        wanted.subject,
        wanted.slot,
        wanted.entry,
        wanted.plugin,
        wanted.plugin_version,
        wanted.credential,
    )
    if any(len(text) > LONGEST or "\0" in text for text in texts):
        return refused(
            FAILURE_KIND_INVALID_INPUT, "TEXT_REFUSED", f"a text is longer than {LONGEST} or holds a NUL"
        )
    tenant = _tenant(wanted)
    if not tenant:
        why = "leases are for a connection, or for an app with its credential named in full"
        return refused(FAILURE_KIND_INVALID_INPUT, "SUBJECT_REFUSED", why)
    if wanted.purpose not in Purpose.values() or not wanted.purpose:
        return refused(FAILURE_KIND_INVALID_INPUT, "PURPOSE_MISSING", "it is not said for what")
    return Use(
        tenant=tenant,
        holder=f"plugins/{wanted.plugin}" if wanted.plugin else client.name,
        subject=wanted.subject,
        slot=wanted.slot,
        entry=wanted.entry,
        purpose=Purpose.Name(wanted.purpose).removeprefix("PURPOSE_"),
        credential=wanted.credential.rpartition("/")[2],
    )


def _tenant(wanted: Wanted) -> str:
    """Whose credentials are looked through. An app is nobody's: the credential says whose tenant it is."""
    if _CONNECTION.fullmatch(wanted.subject):
        return tenant_of(wanted.subject)
    named = _APP.fullmatch(wanted.subject) and _CREDENTIAL.fullmatch(wanted.credential)
    return tenant_of(wanted.credential) if named else ""


def may_ask(client: Client, wanted: Wanted) -> bool:
    """Each process asks for itself; for plugins their host asks."""
    return client.hosts_plugins or not wanted.plugin


def denied(reason: str, message: str) -> Outcome:
    return refused(FAILURE_KIND_PERMISSION_DENIED, reason, message)
