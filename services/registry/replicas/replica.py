"""A replica: one life of one registry process."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass

import psutil


def new_replica() -> str:
    """An id of its own for each start: what a dead one left is never mistaken for ours."""
    return f"r{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True)
class Life:
    """A process on a machine, told from any other that has its number later."""

    machine: str
    process: str

    @classmethod
    def own(cls) -> Life:
        return cls(socket.gethostname(), _process(os.getpid()))


def lives(process: str) -> bool:
    """Whether that process of this machine is still there."""
    pid, _, _ = process.partition(" ")
    try:
        return _process(int(pid)) == process and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def _process(pid: int) -> str:
    return f"{pid} {psutil.Process(pid).create_time():.1f}"
