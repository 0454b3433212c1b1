"""A whole installation in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

WITHIN = 60.0


@contextmanager
def up(data: Path, *plugins: Path) -> Iterator[psutil.Process]:
    """Inside the block everything serves; at its end everything is gone."""
    command = [sys.executable, "-m", "cli", "up", "--data", str(data), "--http", "127.0.0.1:0"]
    if plugins:
        command += ["--plugins", *map(str, plugins)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line.startswith("ready "):
            line = process.stdout.readline()
        assert line.startswith("ready "), line
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WITHIN)
