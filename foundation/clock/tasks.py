"""Ending and waking the tasks that an object owns."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

_PATIENCE = 0.5


async def end(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task until it has ended.

    Once is not always enough: in Python 3.11 `wait_for`, which the NATS client uses all over, forgets a
    cancellation that comes together with what it waited for.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_PATIENCE)


async def woken(event: asyncio.Event, within: float) -> None:
    """Wait until somebody sets the event, or the time has passed; then it is cleared."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await event.wait()
    event.clear()
