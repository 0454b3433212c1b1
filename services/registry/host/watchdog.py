"""Looks after a process that serves: does it answer, and does it keep within its memory and its disk?

A limit on data stops a greedy process from inside, with an error it can tell; this looks at what it truly
holds, its children's share included, and ends it for what no limit sees.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB = 1024 * 1024
SMALLEST = 4096
"""What a file takes, even an empty one: there are only so many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    look_seconds: float = 2.0
    answer_within: float = 5.0
    silent_looks: int = 3
    """So many looks in a row without an answer, and it hangs."""


class Watchdog:
    """`watch` a process until it is ended or the watch is cancelled."""

    def __init__(
        self,
        *,
        answers: Callable[[float], Awaitable[bool]],
        end: Callable[[str], None],
        memory_limit: int,
        scratch: Path | None,
        scratch_quota: int,
        patience: Patience,
    ) -> None:
        self._answers, self._end = answers, end
        self._memory_limit, self._scratch, self._scratch_quota = memory_limit, scratch, scratch_quota
        self._patience = patience

    async def watch(self, pid: int) -> None:
        """Both at once: whoever is too busy to answer may be busy taking too much."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_answers())
            tasks.create_task(self._watch_holdings(pid))

    async def _watch_answers(self) -> None:
        silent = 0
        while silent < self._patience.silent_looks:
            await asyncio.sleep(self._patience.look_seconds)
            silent = 0 if await self._answers(self._patience.answer_within) else silent + 1
        self._end(f"it did not answer {silent} health checks in a row")

    async def _watch_holdings(self, pid: int) -> None:
        while True:
            # On another thread: how many files there are is the plugin's choice, and others are served meanwhile.
            if why := await asyncio.to_thread(self._holds_too_much, pid):
                return self._end(why)
            await asyncio.sleep(self._patience.look_seconds)

    def _holds_too_much(self, pid: int) -> str:
        held = memory_of(pid)
        if held > self._memory_limit:
            return f"it held {held // MIB} MiB of memory, and {self._memory_limit // MIB} MiB is its limit"
        if self._scratch is not None:
            used = 0.0
            for size in sizes(self._scratch):
                used += size
                if used > self._scratch_quota:
                    quota = self._scratch_quota // MIB
                    return f"it kept more than {quota} MiB in its scratch folder, which is its quota"
        return ""


def memory_of(pid: int) -> int:
    """What a process and its children hold, in bytes; 0 for nobody."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(map(_resident, family))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def sizes(folder: Path) -> Iterator[float]:
    """What every file takes. Without recursion, as the depth is the plugin's choice too; what hides takes all."""
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        yield max(entry.stat(follow_symlinks=False).st_blocks * 512, SMALLEST)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile, as may be each of its files
            continue
        except OSError:  # closed to us, or deeper than a path can say
            yield math.inf
