"""The command line that every process shares: `python -m services.mapper [--config FILE …] [--check]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from foundation.errors import Problem
from foundation.settings.loading import Loaded, load
from foundation.settings.types import Secret, Settings

T = TypeVar("T", bound=Settings)
Serve = Callable[[T, asyncio.Event], Awaitable[None]]


def run(section: str, kind: type[T], serve: Serve[T], argv: Sequence[str] | None = None) -> None:
    """Load the settings, then serve until SIGINT or SIGTERM; exit 2 says the settings are at fault."""
    parser = argparse.ArgumentParser(prog=section, description=f"Tieline's {section} process.")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="settings file (TOML); may be given again, the later one wins",
    )
    parser.add_argument("--check", action="store_true", help="validate the settings, show them and stop")
    options = parser.parse_args(argv)
    # What a process holds in memory must not be left on a disk when it dies.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        loaded = load(kind, section, options.config, os.environ)
        if options.check:
            print(describe(section, loaded))  # noqa: T201 - this is what --check is asked for
            return
        with asyncio.Runner(loop_factory=_fast_loop) as runner:
            runner.run(_until_told(serve, loaded.settings))
    except Problem as problem:
        sys.stderr.write(f"{section}: {problem.text}\n")
        raise SystemExit(problem.meaning.exit) from None


def describe(section: str, loaded: Loaded[T]) -> str:
    """The effective settings and where each came from; secrets stay covered."""
    lines = [f"[{section}]"]
    for field in msgspec.structs.fields(loaded.settings):
        value = getattr(loaded.settings, field.name)
        shown = "…" if isinstance(value, Secret) else str(value)
        lines.append(f"{field.name} = {shown}  # {loaded.origins.get(field.name, 'default')}")
    return "\n".join(lines)


async def _until_told(serve: Serve[T], settings: T) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def _fast_loop() -> asyncio.AbstractEventLoop:
    import uvloop  # noqa: PLC0415 - not needed by --check, nor by a process that ends at its settings

    return uvloop.new_event_loop()
