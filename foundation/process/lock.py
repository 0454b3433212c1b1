"""Two locks of a data directory: who owns it, and whether anybody still uses it.

Both are `flock`s, which the kernel drops when the last descriptor of an open file is closed, by whatever end.
They differ in who holds the descriptor:

* the **owner lock** is held by one process alone. A second one is told at once, and by whom;
* a **tail lock** is passed on to a child and with it to everything the child starts (each of PostgreSQL's
  processes, say), and our own copy is closed. So it is free exactly when the very last of them is gone, also
  after `kill -9` of whoever watched them. Who holds it afterwards may clean up without looking twice.

Never unlock (LOCK_UN): it would unlock for everyone who shares the open file. Only close.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from foundation.process.errors import LockHeldError, ProcessError

_POLL = 0.02


class OwnerLock:
    """One living owner per directory; the file tells its pid."""

    def __init__(self, path: Path, what: str = "tieline") -> None:
        self.path = path
        self._fd = _opened(path)
        if not _locked(self._fd):
            pid = _pid_in(self._fd)
            os.close(self._fd)
            by = f"by process {pid}" if pid else "by another process"
            raise LockHeldError(f"{path.parent} is in use {by} ({what} runs there already)", pid)
        try:
            os.pwrite(self._fd, f"{os.getpid():<20}\n".encode(), 0)  # always as long, so nothing is left over
        except OSError as error:
            self.close()
            raise _unwritable(path, error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TailLock:
    """`acquire`, start the child with the descriptor in its `pass_fds`, `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    async def acquire(self, patience: float, last_word: float = 2.0) -> int:
        """The descriptor to pass on, once nobody else has it.

        Who still holds it after `patience` seconds is killed: only descendants of an earlier child can hold it.
        """
        fd = _opened(self.path)
        try:
            if not await _locked_within(fd, patience):
                await self._insist(fd, last_word)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return fd

    def kill_holders(self) -> None:
        """SIGKILL for whoever else holds it, without waiting."""
        for pid in holders(self.path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _insist(self, fd: int, seconds: float) -> None:
        self.kill_holders()
        if not await _locked_within(fd, seconds):
            last = next(holders(self.path), None)
            raise LockHeldError(f"{self.path} is still in use by process {last or 'unknown'}", last)

    def close(self) -> None:
        """Close our copy: from now on the lock is the child's, or free when no child has it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holders(path: Path) -> Iterator[int]:
    """The other processes that hold the lock of this file, as far as we may see them."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _holds(process, wanted):
            yield int(process.name)


def _holds(process: Path, wanted: os.stat_result) -> bool:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:  # gone meanwhile, or somebody else's
        return False
    for descriptor in descriptors:
        with suppress(OSError):
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return "FLOCK" in (process / "fdinfo" / descriptor.name).read_text()
    return False


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ProcessError:
    return ProcessError(f"cannot write in {path.parent}: {error.strerror}")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _locked_within(fd: int, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not _locked(fd):  # noqa: ASYNC110 - flock has no event to wait for
                await asyncio.sleep(_POLL)
            return True
    return _locked(fd)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None
