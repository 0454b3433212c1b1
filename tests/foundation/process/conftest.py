"""What the tests of processes share: short programs to be children, and their end."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.output import Bounds, Line

Python = Callable[..., Command]
Spawn = Callable[..., Awaitable[Child]]


@pytest.fixture
def python() -> Python:
    """A command that runs a few lines of Python, quickly."""

    def make(code: str, name: str = "child", **fields: object) -> Command:
        return Command(name=name, argv=(sys.executable, "-I", "-S", "-u", "-c", code), **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Children that end with their test."""
    children: list[Child] = []

    async def start(
        command: Command, sink: Callable[[Line], None] | None = None, bounds: Bounds | None = None
    ) -> Child:
        child = await Child.spawn(command, sink or (lambda _: None), bounds or Bounds())
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        await child.wait()


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[3]
