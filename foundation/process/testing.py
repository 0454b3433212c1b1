"""For tests of processes: who is alive, and waiting for what must come true."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path


def alive(pid: int) -> bool:
    """Zombies are dead: whoever has to reap them is not the subject of a test."""
    try:
        state = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


async def until(condition: Callable[[], object | Awaitable[object]], within: float = 30.0) -> None:
    """Look again and again, with a deadline; the condition may be a coroutine function."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come true within {within:g} s")
        await asyncio.sleep(0.01)


async def gone(pids: Iterable[int], within: float = 30.0) -> None:
    """Wait until none of them is alive."""
    left = set(pids)

    def nobody() -> bool:
        left.intersection_update(pid for pid in tuple(left) if alive(pid))
        return not left

    try:
        await until(nobody, within)
    except AssertionError:
        raise AssertionError(f"still alive after {within:g} s: {sorted(left)}") from None
