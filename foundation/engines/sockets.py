"""A short private directory for a unix socket, outside the data directory and unlike any other.

The kernel takes 107 bytes of path; a data directory may well be longer. The directory is fresh each time, so
that nobody can have prepared it, and remembered beside the data, so that one left by `kill -9` is removed by
the next start.
"""

import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from foundation.engines.errors import SocketPathError
from foundation.engines.files import telling, write_private

LONGEST = 107
_PREFIX = "tl-"


def fresh_directory(memory: Path, socket_name: str) -> Path:
    """Make one, and remove what `memory` remembers."""
    forget_directory(memory)
    candidates = dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp")))  # noqa: S108 - mkdtemp below it
    for base in candidates:
        if len(str(base / f"{_PREFIX}{'x' * 8}" / socket_name).encode()) > LONGEST:
            continue
        with telling(base):
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        write_private(memory, f"{directory}\n")
        return directory
    raise SocketPathError(
        f"no directory is short enough for a unix socket ({LONGEST} bytes): set TMPDIR to a shorter one"
    )


def keep_directory(directory: Path) -> None:
    """Make it again if somebody tidied it away, under the name that clients hold; never take over a stranger's."""
    with telling(directory.parent), suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    with telling(directory):
        found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SocketPathError(f"{directory} is not the private directory that it was: stop, and start again")


def forget_directory(memory: Path) -> None:
    """Remove the remembered directory, if it looks like one of ours, and the memory of it."""
    with suppress(FileNotFoundError):
        directory = Path(memory.read_text(encoding="utf-8").strip())
        if directory.name.startswith(_PREFIX) and not directory.is_symlink():
            shutil.rmtree(directory, ignore_errors=True)
        memory.unlink()
