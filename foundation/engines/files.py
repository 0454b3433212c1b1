"""Private files and directories of an engine, with errors a person understands."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.engines.errors import DirectoryError, DiskFullError, EngineError
from foundation.process import private


def no_space(where: Path) -> DiskFullError:
    return DiskFullError(f"the disk that holds {where} is full")


@contextmanager
def telling(where: Path) -> Iterator[None]:
    """Turn the system's refusals into ours."""
    try:
        yield
    except OSError as error:
        raise told(where, error) from error


def told(where: Path, error: OSError) -> EngineError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return no_space(where)
    return DirectoryError(f"cannot use {where}: {error.strerror}")


def private_directory(path: Path) -> None:
    with telling(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_private(path: Path, text: str) -> None:
    with telling(path.parent):
        private.write_private(path, text)


def password_in(path: Path) -> str:
    """The password kept in the file; made the first time."""
    with telling(path.parent):
        if not path.exists():
            write_private(path, secrets.token_urlsafe(24) + "\n")
        password = path.read_text(encoding="utf-8").strip()
    if not password:
        raise DirectoryError(f"{path} holds no password: restore it, or set the data directory aside")
    return password
