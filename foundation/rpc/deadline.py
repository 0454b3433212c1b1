"""Deadline budgets: a request gets what its caller has left, and what it calls gets less.

Work that cannot finish is refused before it begins; refusing early is the cheapest way to be late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from foundation.errors import Code, Problem
from foundation.rpc.call import Call, present_call

DEFAULT = 30.0
"""Seconds that a unary request may take whose caller set no deadline."""

FLOOR = 0.005
"""Less than this is too little for any method."""

RESERVE = 0.05
"""What a request keeps for itself, so that it answers instead of being cut off when its callee is late."""


@asynccontextmanager
async def deadline(call: Call) -> AsyncIterator[None]:
    remaining = call.context.time_remaining()
    if remaining is None:
        if call.method.streams:
            yield
            return
        remaining = DEFAULT
    if remaining < FLOOR:
        milliseconds = max(0, round(remaining * 1000))
        raise Problem(Code.DEADLINE_TOO_SHORT, method=call.method.path, remaining_ms=milliseconds)
    limit = asyncio.timeout(remaining)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise Problem(Code.DEADLINE_EXCEEDED, method=call.method.path) from None


def budget(wanted: float) -> float:
    """Seconds for an outgoing call: what was asked for, but never more than the request we serve has left."""
    call = present_call()
    remaining = call.context.time_remaining() if call else None
    return wanted if remaining is None else max(0.0, min(wanted, remaining - RESERVE))
