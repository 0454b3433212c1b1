"""What a plugin started and left behind: ended with it.

Its process group dies with it anyway. What left the group still carries the address of its launch, or of a
launch below the directory of a host that is gone, in its environment.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

ADDRESS = "TIELINE_PLUGIN_ADDRESS"


def end_orphans(below: Path) -> int:
    """Kill every process whose plugin was told to listen below this directory; how many there were."""
    mark = f"{ADDRESS}=unix://{below}/".encode()
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    return sum(_end(pid, mark) for pid in pids if pid != os.getpid())


def _end(pid: int, mark: bytes) -> bool:
    """The handle is opened before the look, so that the number cannot become a stranger's in between."""
    with suppress(OSError):  # gone meanwhile, or somebody else's
        handle = os.pidfd_open(pid)
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(variable.startswith(mark) for variable in variables):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False
