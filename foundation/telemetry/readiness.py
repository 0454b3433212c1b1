"""Whether a process can do its work: each dependency by name, asked side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from foundation.errors import Problem

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]
"""Returns when the dependency answers; raises a `Problem` that says why it does not."""


@dataclass(frozen=True, slots=True)
class Report:
    dependencies: Mapping[str, str]
    """What is wrong with each, or `ok`."""

    @property
    def ready(self) -> bool:
        return all(state == "ok" for state in self.dependencies.values())


class Readiness:
    """Asks every dependency, each at most once at a time and with a deadline of its own."""

    def __init__(self, checks: Mapping[str, Check], deadline: float = 2.0) -> None:
        self._checks = dict(checks)
        self._deadline = deadline
        self._stopping = False
        self._asking: asyncio.Task[Report] | None = None

    def stop(self) -> None:
        """From now on the answer is no: nothing new should be sent here."""
        self._stopping = True

    async def report(self) -> Report:
        if self._stopping:
            return Report({"process": "shutting down"})
        # Whoever comes while we ask gets the same answer: a crowd at /readyz is no crowd at a dependency.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="ask dependencies")
        return await asyncio.shield(self._asking)

    async def _ask_all(self) -> Report:
        states = await asyncio.gather(*(self._ask(check) for check in self._checks.values()))
        return Report(dict(zip(self._checks, states, strict=True)))

    async def _ask(self, check: Check) -> str:
        try:
            async with asyncio.timeout(self._deadline):
                await check()
        except Problem as problem:
            return problem.sentence
        except TimeoutError:
            return f"no answer within {self._deadline:g} s"
        except Exception as error:  # a task's border: a check that breaks is an answer too, and it is no
            log.exception("a readiness check failed")
            return f"its check failed ({type(error).__name__})"
        return "ok"
