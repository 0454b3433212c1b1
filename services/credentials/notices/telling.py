"""What a tenant's administrators are told about its credentials."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from foundation.notices import notice
from services.credentials.credential.store import CredentialRow
from tieline.event.v1.content_pb2 import (
    SEVERITY_ERROR,
    SEVERITY_INFO,
    SEVERITY_WARNING,
    FailureFacts,
    Severity,
)
from tieline.event.v1.event_pb2 import Event

COMPONENT = "credentials"
AUDIENCE = "tenant-admin"
"""Who is meant: members of the tenant with this role."""

_WORDS: Mapping[str, tuple[str, Severity.ValueType]] = {
    "REFUSED": ("is refused by its provider", SEVERITY_ERROR),
    "REAUTHORISATION_REQUIRED": ("needs a person to consent again", SEVERITY_ERROR),
    "EXPIRED": ("has expired", SEVERITY_ERROR),
    "REVOKED": ("was revoked", SEVERITY_WARNING),
}
BROKEN = frozenset(_WORDS)
"""States in which nobody gets the credential."""


def ends_soon(row: CredentialRow, ends: datetime, days: int, now: datetime) -> Event:
    return _about(
        row,
        "credential.expiring",
        key=f"{row.name}/{row.current_version}/expiring/{days}",
        title=f"{row.name} ends within {days} {'day' if days == 1 else 'days'}, and nothing renews it",
        severity=SEVERITY_WARNING,
        at=now,
        attributes={"expire_time": ends.isoformat(), "days": days},
    )


def broke(row: CredentialRow, connections: list[str], now: datetime) -> Event:
    words, severity = _WORDS[row.state]
    reason = (row.failure or {}).get("message", "")
    paused = f"; {len(connections)} connection(s) wait for it" if connections else ""
    return _about(
        row,
        f"credential.{row.state.lower()}",
        key=_change(row, now),
        title=f"{row.name} {words}{paused}",
        severity=severity,
        at=now,
        attributes={"why": reason, "connections": connections},
        failure=FailureFacts(state=FailureFacts.STATE_FAILING, key=row.name),
    )


def works_again(row: CredentialRow, connections: list[str], now: datetime) -> Event:
    return _about(
        row,
        "credential.recovered",
        key=_change(row, now),
        title=f"{row.name} works again",
        severity=SEVERITY_INFO,
        at=now,
        attributes={"connections": connections},
        failure=FailureFacts(state=FailureFacts.STATE_RECOVERED, key=row.name),
    )


def _change(row: CredentialRow, now: datetime) -> str:
    return f"{row.name}/{row.current_version}/{row.state.lower()}/{now.timestamp():.6f}"


def _about(row: CredentialRow, type_: str, *, attributes: Mapping[str, Any], **rest: Any) -> Event:
    said = {"audience": AUDIENCE, "credential": row.name, "version": row.current_version} | dict(attributes)
    return notice(COMPONENT, row.tenant, type_, entities={"credential": row.name}, attributes=said, **rest)
