"""What a tenant is told about its connections: that one does not work, and that it works again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from foundation.notices import notice
from tieline.event.v1.content_pb2 import (
    SEVERITY_ERROR,
    SEVERITY_INFO,
    SEVERITY_WARNING,
    FailureFacts,
    Severity,
)
from tieline.event.v1.event_pb2 import Event

COMPONENT = "registry"

DOWN = "connection.down"
LAGGING = "connection.lagging"
SUSPENDED = "connection.suspended"
QUARANTINED = "plugin.quarantined"
_SEVERITIES: Mapping[str, Severity.ValueType] = {LAGGING: SEVERITY_WARNING}
_OVER = {
    DOWN: ("connection.recovered", "works again"),
    LAGGING: ("connection.caught_up", "has caught up"),
    SUSPENDED: ("connection.resumed", "goes on"),
    QUARANTINED: ("plugin.recovered", "is out of quarantine"),
}
AUDIENCE = "operator"
"""Who is meant: members of the tenant with this role."""


def trouble(
    kind: str, tenant: str, subject: str, why: str, *, since: datetime, now: datetime, said: Mapping[str, Any]
) -> Event:
    """`since` tells this trouble from earlier ones of its kind."""
    return notice(
        COMPONENT,
        tenant,
        kind,
        key=_key(kind, subject, since),
        title=f"{subject}: {why}",
        severity=_SEVERITIES.get(kind, SEVERITY_ERROR),
        at=now,
        entities=_entities(subject, said),
        attributes={"audience": AUDIENCE, "why": why, "since": since.isoformat()} | dict(said),
        failure=FailureFacts(state=FailureFacts.STATE_FAILING, key=f"{subject}/{kind}"),
    )


def over(
    kind: str,
    tenant: str,
    subject: str,
    *,
    since: datetime,
    now: datetime,
    said: Mapping[str, Any],
    became: str = "",
) -> Event:
    """`became`: what ended it, where that is not that all is well."""
    type_, words = _OVER[kind]
    return notice(
        COMPONENT,
        tenant,
        type_,
        key=f"{_key(kind, subject, since)}/over",
        title=f"{subject} {became or words}",
        severity=SEVERITY_INFO,
        at=now,
        entities=_entities(subject, said),
        attributes={
            "audience": AUDIENCE,
            "since": since.isoformat(),
            "seconds": round((now - since).total_seconds(), 3),
        }
        | dict(said),
        failure=FailureFacts(state=FailureFacts.STATE_RECOVERED, key=f"{subject}/{kind}"),
    )


def _key(kind: str, subject: str, since: datetime) -> str:
    return f"{subject}/{kind}/{since.timestamp():.6f}"


def _entities(subject: str, said: Mapping[str, Any]) -> dict[str, str]:
    if subject.startswith("plugins/"):
        return {"plugin": subject}
    plugin = said.get("plugin")
    return {"connection": subject} | ({"plugin": str(plugin)} if plugin else {})
