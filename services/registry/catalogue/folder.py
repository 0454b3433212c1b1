"""A plugin's folder as it lies on disk: what belongs to it, whether it changed, and its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

FILES = 20_000
BYTES = 512 * 1024 * 1024

_NOT_THE_PLUGINS = frozenset({"__pycache__", ".git", ".venv", "node_modules", ".mypy_cache", ".ruff_cache"})
"""What tools leave behind: it changes without anybody changing the plugin."""

Signature = tuple[tuple[str, int, int], ...]


class FolderError(ValueError):
    """Why a folder cannot be a plugin's."""


def signature(folder: Path) -> Signature:
    """Changes whenever a file does, without reading any."""
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in _files(folder))


def digest(folder: Path) -> bytes:
    """SHA-256 over names and contents."""
    whole, size = hashlib.sha256(), 0
    for name, stat in _files(folder):
        size += stat.st_size
        if size > BYTES:
            raise FolderError(f"it holds more than {BYTES // 1024**2} MiB")
        content = hashlib.sha256((folder / name).read_bytes()).digest()
        whole.update(len(name.encode()).to_bytes(4, "big") + name.encode() + content)
    return whole.digest()


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    count = 0
    for where, directories, files in os.walk(folder):
        directories[:] = sorted(name for name in directories if name not in _NOT_THE_PLUGINS)
        for name in sorted(files):
            path = Path(where, name)
            try:
                stat = path.stat()
            except OSError:  # gone meanwhile, or a link to nowhere
                continue
            count += 1
            if count > FILES:
                raise FolderError(f"it holds more than {FILES} files")
            if path.is_file():
                yield str(path.relative_to(folder)), stat
