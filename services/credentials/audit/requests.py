"""What other services ask to have recorded, and what of it may be: their own deeds, in the closed shape."""

from __future__ import annotations

import re
from collections.abc import Iterator

from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from services.credentials.audit.entry import PLATFORM, Actor, Entry, Outcome
from tieline.credentials.v1.audit_pb2 import AuditRecord, RecordAuditRequest

AT_ONCE = 500
LONGEST = 512
MOST = 64
"""Fields, and details, of one record."""

OURS = frozenset(
    [
        "audit",
        "authorization",
        "credential",
        "grant",
        "key",
        "lease",
        "membership",
        "notice",
        "root_key",
        "session",
        "signing_key",
        "tenant",
        "token",
        "user",
    ]
)
"""What only this service does. Nobody else's record may look as if it had done it."""

_ACTION = re.compile(r"([a-z][a-z0-9_]*)(\.[a-z0-9_]+)+")
_PRINCIPAL = re.compile(r"(users|services|plugins)/[^\s/][^\s]*")


def entries(request: RecordAuditRequest, caller: str) -> list[Entry]:
    """The records as entries; INVALID_ARGUMENT names the first field that is not acceptable."""
    if not request.request_id:
        raise Problem(Code.INVALID_ARGUMENT, field="request_id", why="it is empty")
    if not 0 < len(request.records) <= AT_ONCE:
        raise Problem(Code.INVALID_ARGUMENT, field="records", why=f"there must be 1 to {AT_ONCE}")
    return [_entry(record, f"records[{index}]", caller) for index, record in enumerate(request.records)]


def _entry(record: AuditRecord, where: str, caller: str) -> Entry:
    for field, why in _faults(record):
        raise Problem(Code.INVALID_ARGUMENT, field=f"{where}.{field}", why=why)
    return Entry(
        tenant=tenant_of(record.tenant) if record.tenant else PLATFORM,
        action=record.action,
        resource=record.resource,
        outcome=Outcome(record.outcome),
        fields=tuple(record.fields),
        details=dict(record.details),
        intent=record.intent_sequence,
        actor=Actor(caller, record.on_behalf_of),
    )


def _faults(record: AuditRecord) -> Iterator[tuple[str, str]]:
    if record.tenant:
        parse("tenants/*", record.tenant, "tenant")
    action = _ACTION.fullmatch(record.action)
    if action is None:
        yield "action", "it is no dotted name"
    elif action[1] in OURS:
        yield "action", f"{action[1]} is for the credentials service alone"
    if not record.resource:
        yield "resource", "it is empty"
    elif tenant_of(record.resource) not in ("", tenant_of(record.tenant)):
        yield "resource", "it belongs to another tenant"
    if record.on_behalf_of and not _PRINCIPAL.fullmatch(record.on_behalf_of):
        yield "on_behalf_of", "it names no caller"
    if record.outcome not in [outcome.value for outcome in Outcome]:
        yield "outcome", "it is not given"
    if record.intent_sequence < 0:
        yield "intent_sequence", "it is negative"
    yield from _excesses(record)


def _excesses(record: AuditRecord) -> Iterator[tuple[str, str]]:
    if len(record.fields) > MOST or len(record.details) > MOST:
        yield "details", f"there are more than {MOST}"
    texts = (record.action, record.resource, record.on_behalf_of, *record.fields, *record.details)
    if any(len(text) > LONGEST or "\0" in text for text in (*texts, *record.details.values())):
        yield "details", f"a text of it is longer than {LONGEST}, or holds a NUL"
