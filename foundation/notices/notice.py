"""One notice, as the event that subscribers will receive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from tieline.event.v1.content_pb2 import CATEGORY_SYSTEM, Entity, FailureFacts, Severity
from tieline.event.v1.event_pb2 import AUTHENTICITY_INTERNAL, Event

_NOTICES = UUID("0d6c1a52-51c4-5f0e-9a3b-7f54c1c3f7aa")
SCHEMA_VERSION = 1
TYPES = "tieline."
"""What the type of every notice begins with, and of nothing else: no plugin may be called so."""


def notice(
    component: str,
    tenant: str,
    type_: str,
    *,
    key: str,
    title: str,
    severity: Severity.ValueType,
    at: datetime,
    entities: Mapping[str, str],
    attributes: Mapping[str, Any],
    failure: FailureFacts | None = None,
) -> Event:
    """`key` names what happened: the same key is the same event, however often it is told.

    `entities` maps kinds to ids; `failure` says that something does not work, or works again.
    """
    event = Event(
        schema_version=SCHEMA_VERSION,
        id=str(uuid5(uuid5(_NOTICES, f"{component}/{tenant}"), key)),
        tenant=f"tenants/{tenant}",
        authenticity=AUTHENTICITY_INTERNAL,
        external_key=key,
        category=CATEGORY_SYSTEM,
        type=TYPES + type_,
        severity=severity,
        title=title[:256],
        entities=[Entity(kind=kind, id=id_) for kind, id_ in entities.items()],
        attributes=json.dumps(attributes, sort_keys=True).encode(),
        failure=failure,
    )
    event.source.component = component
    event.received_at.FromDatetime(at)
    event.occurred_at.FromDatetime(at)
    return event
