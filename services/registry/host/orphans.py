"""What a plugin started and left behind: ended with it.

Its process group dies with it anyway. What left the group still carries the address of its launch, or of a
launch below the directory of a host that is gone, in its environment. Where the plugin was confined, what cleaned
its environment too is still in the network that was made for it, which nobody inside can leave.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

ADDRESS = "TIELINE_PLUGIN_ADDRESS"
ROUNDS = 10


def end_orphans(below: Path, network: str = "") -> int:
    """Kill every process whose plugin was told to listen below this directory; how many there were.

    `network` is the one of a confined plugin, as `network_of` names it. Somebody must hold it still: a socket of
    ours in it does, and without one its name may be another's by now.
    """
    mark = f"{ADDRESS}=unix://{below}/".encode()
    if network == network_of(os.getpid()):
        network = ""  # everybody's: whatever was taken for a plugin's is none
    killed = 0
    for _ in range(ROUNDS):
        found = sum(_end(pid, mark, network) for pid in _pids())
        killed += found
        if not (found and network):  # whoever forks while we look is met in the next round
            break
    return killed


def network_of(pid: int) -> str:
    """The network that a process is in; empty where nobody can tell."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [
            int(entry.name) for entry in entries if entry.name.isdigit() and entry.name != str(os.getpid())
        ]


def _end(pid: int, mark: bytes, network: str) -> bool:
    """The handle is opened before the look, so that the number cannot become a stranger's in between."""
    with suppress(OSError):  # gone meanwhile, or somebody else's
        handle = os.pidfd_open(pid)
        try:
            if (network and network_of(pid) == network) or _carries(pid, mark):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False


def _carries(pid: int, mark: bytes) -> bool:
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return any(variable.startswith(mark) for variable in variables)
