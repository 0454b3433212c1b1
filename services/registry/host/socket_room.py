"""Where plugins listen: a private directory of this host, in it a fresh one for every launch.

Fresh, because a second server on a socket path silently takes it over, and the first one's exit removes it.
What a host left behind that was killed is removed by the next one: the kernel has released its lock.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from services.registry.host.orphans import end_orphans
from services.registry.host.removing import remove

PREFIX = "tl-plugins-"
LONGEST = 100
"""Bytes of a socket's path, by the contract; the kernel takes 107."""


class SocketRoom:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count(1)

    def fresh(self) -> Path:
        """The path of a socket that does not exist yet, in a directory that nobody else may enter."""
        launch = self._directory / str(next(self._numbers))
        launch.mkdir(mode=0o700)
        return launch / "s"

    def scratch(self, socket: Path) -> Path:
        """A folder for the passing needs of one launch: another of the same plugin may still be at work in its own."""
        folder = self._directory / f"scratch-{socket.parent.name}"
        folder.mkdir(mode=0o700)
        return folder

    def forget(self, socket: Path) -> None:
        remove(socket.parent)


@contextmanager
def socket_room(below: Path | None = None) -> Iterator[SocketRoom]:
    base = below or _short_enough()
    _sweep(base)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    with _locked(directory):
        yield SocketRoom(directory)
    remove(directory)


def _short_enough() -> Path:
    room = LONGEST - len(f"/{PREFIX}xxxxxxxx/99999999/s")
    usual = tempfile.gettempdir()
    return Path(usual if len(usual.encode()) <= room else "/tmp")  # noqa: S108 - mkdtemp below it


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The lock appears under its name only once it is held, so that nobody sweeps what is just being made."""
    draft = directory / ".lock"
    with draft.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(directory / "lock")
        yield


def _sweep(base: Path) -> None:
    for lock in base.glob(f"{PREFIX}*/lock"):
        if lock.parent.is_symlink() or lock.lstat().st_uid != os.getuid():
            continue
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                end_orphans(lock.parent)
                remove(lock.parent)
        except OSError:  # held by a living host, or gone already
            continue
