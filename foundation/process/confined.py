"""A confined child as its parent sees it: started, its way out in our hands, and truly kept in."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from foundation.process.child import Child
from foundation.process.command import Command, Confinement, clean_env
from foundation.process.errors import LaunchError
from foundation.process.output import Sink, ignore

NAMESPACES = ("user", "mnt", "net", "ipc")


USERS = range(61184, 65520)
"""Uids that belong to nobody for longer than a process lives, as systemd uses them."""


def other_user(number: int = 0) -> int:
    """Who a confined child is: where we are root somebody else, else who we are (0)."""
    return USERS[number % len(USERS)] if os.geteuid() == 0 else 0


async def spawn_confined(
    command: Command, confinement: Confinement, sink: Sink = ignore
) -> tuple[Child, socket.socket]:
    """The child, and the one listener in its network. Raises LaunchError, and then there is no child."""
    ours, theirs = socket.socketpair()
    with closing(ours):
        with closing(theirs):
            gate = theirs.fileno()
            enclosed = replace(
                command,
                confinement=replace(confinement, gate=gate),
                pass_fds=(*command.pass_fds, gate),
            )
            child = await Child.spawn(enclosed, sink)
        try:
            listener, alone = _received(ours)
            try:
                _demand_proof(child, alone=alone or confinement.user != 0)
            except LaunchError:
                listener.close()
                raise
        except BaseException:
            child.kill()
            await child.wait()
            raise
    return child, listener


async def unconfinable() -> str:
    """Why no process can be confined on this machine; empty if it can. Tried, not guessed."""
    probe = Command(name="a process", argv=("cat",), env=clean_env(), stdin_pipe=True)
    try:
        child, listener = await spawn_confined(probe, Confinement(user=other_user()))
    except LaunchError as error:
        return error.sentence
    listener.close()
    await child.stop(grace=5.0)
    return ""


def missing(pid: int) -> str:
    """What the kernel says about a process that is meant to be confined: empty if it is."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        shared = [kind for kind in NAMESPACES if _namespace(pid, kind) == _namespace(os.getpid(), kind)]
    except OSError as error:
        return f"nobody can look at it ({error.strerror})"
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if shared:
        return f"it shares namespaces with us ({', '.join(shared)})"
    if any(int(facts[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")):
        return "it has capabilities left"
    if facts["NoNewPrivs"] != "1":
        return "it may gain privileges"
    return ""


def _namespace(pid: int, kind: str) -> Path:
    return Path(f"/proc/{pid}/ns/{kind}").readlink()


def _demand_proof(child: Child, *, alone: bool) -> None:
    if not alone:
        why = "it could end processes of the same user (Linux 6.12 rules that out)"
    else:
        why = missing(child.pid)
    if why and child.running:
        raise LaunchError(f"{child.command.name} cannot be confined: {why}")


def _received(gate: socket.socket) -> tuple[socket.socket, bool]:
    """The listener, which was sent before the program began, and whether strangers are safe from its signals."""
    gate.settimeout(0)
    try:
        said, descriptors, _, _ = socket.recv_fds(gate, 64, 1)
    except BlockingIOError:
        said, descriptors = b"", []
    if not descriptors:
        raise LaunchError("the launcher sent no listener")
    return socket.socket(fileno=descriptors[0]), said == b"alone"
