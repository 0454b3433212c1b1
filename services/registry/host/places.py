"""What of the file system a confined plugin sees, and what it may write."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import tieline.sdk
from foundation.process.command import Command

PRIVATE = tuple(path for path in map(Path, ("/tmp", "/var/tmp")) if path.is_dir())  # noqa: S108
"""Empty, its own, and gone with it."""
HOMES = ("/root", "/home", "/run", "/boot")
"""Where people, and the sockets of what else runs here, are."""

_WHOLE = {Path("/"), Path("/usr"), Path("/usr/local")}
_PATHS = ("PYTHONPATH", "NODE_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")


def hidden(*own: str) -> tuple[Path, ...]:
    """Homes, and directories and files of our own."""
    home = os.environ.get("HOME", "")
    return _real(Path(text) for text in (*HOMES, home, *own) if text)


def kept(command: Command) -> tuple[Path, ...]:
    """What it runs from, wherever that lies: its folder, its interpreter, the SDK, and what its environment names."""
    return _real(_needed(command))


def written(command: Command) -> tuple[Path, ...]:
    socket = command.env.get("TIELINE_PLUGIN_ADDRESS", "").removeprefix("unix://")
    scratch = command.env.get("TIELINE_PLUGIN_SCRATCH", "")
    return _real(
        path for path in (Path(socket).parent if socket else None, scratch and Path(scratch)) if path
    )


def _needed(command: Command) -> Iterator[Path]:
    if command.cwd is not None:
        yield command.cwd
    yield from (Path(sys.prefix), Path(sys.base_prefix), Path(str(tieline.sdk.__file__)).parents[2])
    program = shutil.which(command.argv[0], path=command.env.get("PATH"))
    if program is not None:
        yield from (Path(program).absolute().parents[1], Path(program).resolve().parents[1])
    for name in _PATHS:
        yield from (Path(part) for part in command.env.get(name, "").split(os.pathsep) if part)


def _real(paths: Iterable[Path]) -> tuple[Path, ...]:
    found = (path.resolve() for path in paths if os.path.exists(path))  # noqa: PTH110 - no error where we may not look
    return tuple(dict.fromkeys(path for path in found if path not in _WHOLE))
