"""Whether a tenant may do anything at all: asked here, and nowhere else, by whatever serves a tenant."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from foundation.errors import Code, Problem
from services.credentials.identities.store.tenants import tenant as tenant_row


async def require_active(work: AsyncConnection, tenant: str) -> None:
    """Return if the tenant is active, as this very transaction sees it.

    Called in the transaction that gives something away or takes something in, so that what was decided and what
    is done are one. Suspended or deleted: STATE_REFUSES, with the reason that was given; unknown: NOT_FOUND.
    """
    found = await tenant_row(work, tenant)
    if found is None:
        raise Problem(Code.NOT_FOUND, what=f"tenant {tenant}")
    if found.state != "ACTIVE":
        because = f": {found.reason}" if found.reason else ""
        why = f"it is {found.state.lower()}{because}"
        raise Problem(Code.STATE_REFUSES, what=f"tenants/{tenant}", wanted="served", why=why)
