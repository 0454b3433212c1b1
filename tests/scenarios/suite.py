"""A whole installation as a person runs it: `tieline up` in a process of its own, on data of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from foundation.process import launch

TIELINE = (sys.executable, "-m", "cli")
READY_WITHIN = 90.0


@dataclass
class Standing:
    """One that runs, and what can be asked of it in any event loop."""

    data: Path
    pid: int

    @property
    def text(self) -> str:
        """What it has said so far."""
        return (self.data.parent / "output").read_text(errors="replace")

    @property
    def endpoints(self) -> dict[str, str]:
        document: dict[str, str] = json.loads((self.data / "run/endpoints.json").read_text())
        return document

    @property
    def processes(self) -> dict[str, dict[str, str]]:
        document = json.loads((self.data / "run/processes.json").read_text())
        found: dict[str, dict[str, str]] = document["processes"]
        return found

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def child(self, word: str) -> psutil.Process:
        """The direct child with that word among its arguments."""
        children = psutil.Process(self.pid).children()
        return next(child for child in children if any(word in part for part in child.cmdline()))

    async def database(self) -> asyncpg.Connection:
        password = (self.data / "postgres/password").read_text().strip()
        socket = (self.data / "postgres/socket").read_text().strip()
        return await asyncpg.connect(user="postgres", password=password, host=socket, database="postgres")


@dataclass
class Suite(Standing):
    """One that its test has started, in its own event loop, and may end."""

    process: asyncio.subprocess.Process
    output: bytearray = field(default_factory=bytearray)
    reading: asyncio.Task[None] | None = None

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")

    async def ready(self) -> None:
        await until(
            lambda: b"\nready " in b"\n" + self.output or self.process.returncode is not None, READY_WITHIN
        )
        assert self.process.returncode is None, self.text

    async def end(self, how: signal.Signals = signal.SIGTERM) -> float:
        """Signal it and wait for the end of it and of everything it started; answers the seconds it took."""
        began = time.monotonic()
        left: list[psutil.Process] = []
        if self.process.returncode is None:
            left = self.descendants()
            self.process.send_signal(how)
        await self.process.wait()
        await until(lambda: not [process for process in left if alive(process)], 30.0)
        assert self.reading is not None
        await self.reading
        return time.monotonic() - began


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(holds: Callable[[], object], within: float) -> None:
    ends = time.monotonic() + within
    while not holds():
        assert time.monotonic() < ends, f"not within {within:g} s"
        await asyncio.sleep(0.02)


def tied(program: Sequence[str]) -> list[str]:
    """The program as a child that ends when this process does: a test that runs out of time tidies nothing up."""
    python = program[0] if "python" in Path(program[0]).name else sys.executable  # one that its user may run
    ties = ("--parent", str(os.getpid()), "--death-signal", str(int(signal.SIGKILL)))
    return [python, "-I", "-S", str(launch.__file__), *ties, "--", *program]


async def begin(data: Path, *arguments: str, program: Sequence[str] = TIELINE, **options: Any) -> Suite:
    """Start `tieline up` and return at once."""
    process = await asyncio.create_subprocess_exec(
        *tied(program),
        "up",
        "--data",
        str(data),
        *(arguments or ("--http", "127.0.0.1:0")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **options,
    )
    suite = Suite(data, process.pid, process)
    suite.reading = asyncio.create_task(_read(suite))
    return suite


async def _read(suite: Suite) -> None:
    assert suite.process.stdout is not None
    while chunk := await suite.process.stdout.read(4096):
        suite.output.extend(chunk)


@asynccontextmanager
async def up(data: Path, *arguments: str, **options: Any) -> AsyncIterator[Suite]:
    """A suite that is ready; ended with the block if the block did not end it."""
    suite = await begin(data, *arguments, **options)
    try:
        await suite.ready()
        yield suite
    finally:
        if suite.process.returncode is None:
            await suite.end()


@contextmanager
def standing(data: Path) -> Iterator[Standing]:
    """A suite for many tests, whatever event loops they run in: none of them may end it."""
    output = data.parent / "output"
    command = [*tied(TIELINE), "up", "--data", str(data), "--http", "127.0.0.1:0"]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        ends = time.monotonic() + READY_WITHIN
        while b"\nready " not in b"\n" + output.read_bytes():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < ends, output.read_text()
            time.sleep(0.02)
        yield Standing(data, process.pid)
        assert process.poll() is None, output.read_text()
    finally:
        process.terminate()
        process.wait(READY_WITHIN)


async def tieline(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run a verb to its end: its exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *tied(TIELINE),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | (env or {}),
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()
