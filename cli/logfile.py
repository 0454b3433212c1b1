"""A child's log on disk: bounded, the present file and the one before it."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from foundation.process.output import Line

LIMIT = 16 * 1024 * 1024


class LogFile:
    """Takes lines; never fails its caller, since a full disk must not end what is logged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()

    def __call__(self, line: Line) -> None:
        if self._file.closed:
            return  # a last word after the end
        try:
            if self._file.tell() > LIMIT:
                self._turn()
            self._file.write(line.text.encode(errors="replace") + b"\n")
        except OSError:
            return

    def _turn(self) -> None:
        with suppress(FileNotFoundError):  # tidied away, or the last turn got no further than this
            self.path.replace(self.path.with_suffix(".log.1"))
        full, self._file = self._file, self._open()  # if it cannot be had, the full one takes the lines
        full.close()

    def _open(self) -> FileIO:
        return FileIO(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")

    def close(self) -> None:
        self._file.close()
