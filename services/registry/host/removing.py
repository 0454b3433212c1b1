"""Removing a folder that a plugin could write to: however deep it went, whatever it links to.

`shutil.rmtree` goes down by recursion, which a folder of a thousand levels ends with an error that nobody expects.
Here whatever lies deeper is first moved to the top, so that there are never more than two levels.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove(folder: Path) -> None:
    """All of it that can be removed; says nothing of what cannot."""
    with suppress(OSError):
        top = os.open(folder, _FOLDER)
        try:
            while sum(_removed(name, top) for name in _names(top)):
                pass
        finally:
            os.close(top)
        folder.rmdir()


def _removed(name: str, top: int) -> bool:
    """Whether there is less to do than before."""
    try:
        if not _is_file_removed(name, top):
            _flatten(name, top)
            os.rmdir(name, dir_fd=top)
    except OSError:
        return False
    return True


def _flatten(name: str, top: int) -> None:
    inside = os.open(name, _FOLDER, dir_fd=top)
    try:
        for below in _names(inside):
            if not _is_file_removed(below, inside):
                os.rename(below, token_hex(16), src_dir_fd=inside, dst_dir_fd=top)
    finally:
        os.close(inside)


def _is_file_removed(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


def _names(folder: int) -> list[str]:
    return os.listdir(folder)
