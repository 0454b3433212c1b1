"""Programs of the machine that a plugin starts itself: are they there, and new enough?"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.errors import ProcessError

LOOK_SECONDS = 5.0


async def missing(programs: Iterable[str]) -> str:
    """What is not there, by name, or empty."""
    for wanted in programs:
        name, _, least = (part.strip() for part in wanted.partition(">="))
        if shutil.which(name) is None:
            return f"it needs {wanted}, and {name} is not on the PATH"
        if least:
            have = await _version(name)
            if have is None:
                return f"it needs {wanted}, and `{name} --version` names no version"
            if have < _numbers(least):
                return f"it needs {wanted}, and this is {'.'.join(map(str, have))}"
    return ""


async def _version(name: str) -> tuple[int, ...] | None:
    try:
        child = await Child.spawn(Command(name=name, argv=(name, "--version")))
    except ProcessError:
        return None
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            await child.wait()
    await child.stop(0)
    found = re.search(r"\d+(\.\d+)+", child.tail)
    return _numbers(found[0]) if found else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
