"""How a credential stands. Every change goes through `enter`: it is told to the registry and to people.

The registry watches the states of all credentials that a grant covers. It pauses the connections that use one
which is broken, and no others, and resumes them when the credential works again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.notices import outbox
from services.credentials.credential import store as queries
from services.credentials.credential.store import CredentialRow
from services.credentials.notices import telling
from tieline.common.v1.failure_pb2 import Failure

USABLE = frozenset({"UNCHECKED", "VALID", "EXPIRING", "REFRESH_UNKNOWN"})
"""States in which a holder may still get it. REFRESH_UNKNOWN: what is being found out may turn out well."""


async def enter(
    work: AsyncConnection,
    row: CredentialRow,
    state: str,
    failure: Failure | None = None,
    *,
    now: datetime,
) -> CredentialRow:
    """The credential in its new state; nothing happens where it is in that state already."""
    if row.state == state:
        return row
    why: Mapping[str, Any] | None = None
    if failure is not None:
        why = MessageToDict(failure, preserving_proto_field_name=True)
    entered = replace(row, state=state, failure=why, state_at=now)
    await queries.enter_state(work, entered)
    await queries.note_change(work)
    connections = await queries.connections_of(work, row.tenant, row.id)
    if state in telling.BROKEN:
        await outbox.add(work, telling.broke(entered, connections, now))
    elif row.state in telling.BROKEN:
        await outbox.add(work, telling.works_again(entered, connections, now))
    return entered
