"""Many children as one: started stage by stage, stopped in the opposite order, all gone by a deadline."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

_LAST_WORD = 2.0  # of the deadline, kept for SIGKILL to take effect


class Part(Protocol):
    """What can be started and stopped: a supervised child, an engine."""

    @property
    def name(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self, grace: float | None = None) -> None: ...
    def kill(self) -> None: ...


class Supervision:
    """`async with Supervision(within=15) as all: await all.start(engines...); await all.start(services...)`.

    The parts of one stage start and stop together; a later stage stops before an earlier one.
    """

    def __init__(self, within: float = 15.0) -> None:
        self._within = within
        self._stages: list[tuple[Part, ...]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *parts: Part) -> None:
        """Start one stage; the first failure cancels the others' start and is raised as it is."""
        self._stages.append(parts)
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part.start(), name=f"start {part.name}")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def stop(self) -> None:
        """Stop everything, last stage first; whoever is left near the deadline is killed."""
        stages, self._stages = self._stages, []
        try:
            async with asyncio.timeout(max(self._within - _LAST_WORD, 0)):
                for stage in reversed(stages):
                    await _together(stage)
        except TimeoutError:
            await self._kill(stages)
        except BaseException:
            _kill_all(stages)
            raise

    async def _kill(self, stages: Sequence[Sequence[Part]]) -> None:
        _kill_all(stages)
        async with asyncio.timeout(_LAST_WORD):
            for stage in reversed(stages):
                await _together(stage, grace=0)


def _kill_all(stages: Sequence[Sequence[Part]]) -> None:
    for stage in stages:
        for part in stage:
            part.kill()


async def _together(stage: Sequence[Part], grace: float | None = None) -> None:
    async with asyncio.TaskGroup() as group:
        for part in stage:
            group.create_task(part.stop(grace), name=f"stop {part.name}")
