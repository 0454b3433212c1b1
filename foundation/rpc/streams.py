"""A stream of answers that ends where its block ends, and one that is followed for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import structlog

from foundation.errors import Problem

log = structlog.get_logger(__name__)

T_co = TypeVar("T_co", covariant=True)


class Answers(Protocol[T_co]):
    """What a stub gives for a method that streams."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def cancel(self) -> bool: ...


@asynccontextmanager
async def streaming(call: Answers[T_co]) -> AsyncIterator[AsyncIterator[T_co]]:
    """Open a block for the answers of a call, which is over when the block is.

        async with streaming(stub.Watch(request)) as answers:
            async for answer in answers:

    However the block is left (break, return, an error, a cancellation), the server hears of it. Leaving a bare
    `async for` tells it nothing: generators know only when they are collected, and the server works on.
    """
    try:
        yield aiter(call)
    finally:
        call.cancel()


FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds between two attempts while whoever tells is away."""


async def follow(what: str, open_: Callable[[], Answers[T_co]], take: Callable[[T_co], None]) -> None:
    """Hear a stream for ever: what it tells is taken, and when it is cut, it is opened anew.

    For a task of its own. Whoever tells begins with everything, so nothing is missed by a cut.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            async with streaming(open_()) as answers:
                async for answer in answers:
                    take(answer)
                    pause = FIRST_PAUSE
        except Problem as problem:
            log.info("not told at the moment", what=what, why=problem.sentence)
        except Exception:  # a task's border: what is followed must be heard of again
            log.exception("not told at the moment", what=what)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)
