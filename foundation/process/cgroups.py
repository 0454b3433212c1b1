"""Memory that the kernel itself bounds, for a child and everything it starts, where control groups are ours to make.

Both versions of control groups are known: the unified one, and the memory controller of the old one. Where
neither may be written to, `find` says so, and whoever asked has to do with limits of single processes.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "tieline-"
_OCTAL = re.compile(r"\\([0-7]{3})")
_PROCESSES = "cgroup.procs"
_IN_USE: set[Path] = set()
"""Groups of this process that may be empty only because nobody has been started in them yet."""


@dataclass(frozen=True, slots=True)
class Version:
    """What the files are called."""

    limit: str
    swap: str
    """What bounds swap: `swap_counts_all` says whether memory is counted in."""
    swap_counts_all: bool
    events: str
    kill: str = ""


UNIFIED = Version("memory.max", "memory.swap.max", False, "memory.events", "cgroup.kill")  # noqa: FBT003
OLD = Version("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", True, "memory.oom_control")  # noqa: FBT003


@dataclass(frozen=True, slots=True)
class Group:
    """One control group, empty until a child is started in it."""

    path: Path
    version: Version

    @property
    def processes(self) -> list[int]:
        try:
            return [int(line) for line in (self.path / _PROCESSES).read_text().split()]
        except OSError:
            return []

    @property
    def ran_out(self) -> bool:
        """Whether the kernel killed something in it, because it wanted more than there was."""
        with suppress(OSError):
            for line in (self.path / self.version.events).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return count.strip() != "0"
        return False

    def close(self) -> None:
        """End whatever is still in it. What takes a moment to go is removed by the next `sweep`."""
        _IN_USE.discard(self.path)
        if self.version.kill:
            with suppress(OSError):
                (self.path / self.version.kill).write_text("1")
        for pid in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.remove()

    def remove(self) -> bool:
        with suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where groups may be made."""

    below: Path
    version: Version

    def make(self, memory: int) -> Group:
        """A group that may hold so many bytes, and no swap beside them. OSError where that cannot be had now."""
        self.sweep()
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        group = Group(self.below / name, self.version)
        _IN_USE.add(group.path)
        group.path.mkdir()
        try:
            (group.path / self.version.limit).write_text(str(memory))
            with suppress(OSError):  # a kernel without swap accounting
                (group.path / self.version.swap).write_text(
                    str(memory if self.version.swap_counts_all else 0)
                )
        except OSError:
            group.close()
            raise
        return group

    def sweep(self) -> None:
        """Groups of whoever is gone, and our own that were not empty when they were closed."""
        for path in self.below.glob(f"{PREFIX}*"):
            if path not in _IN_USE and not _somebodys(path):
                Group(path, self.version).remove()


def find(
    membership: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo")
) -> Cgroups | None:
    """Where we may make groups that bound memory: tried, not guessed. None: nowhere."""
    try:
        places = list(_places(membership.read_text(), mounts.read_text()))
    except OSError:
        return None
    return next((place for place in places if _works(place)), None)


def _places(membership: str, mounts: str) -> Iterator[Cgroups]:
    """Our own group, and in the unified hierarchy the one above: a service's own is often a leaf."""
    own = dict(_memberships(membership))
    for kind, root, point, options in _mounts(mounts):
        name = "" if kind == "cgroup2" else "memory"
        if name not in own or (name and name not in options):
            continue
        inside = os.path.relpath(own[name], root)
        here = Path(os.path.normpath(point / inside))
        if name:
            yield Cgroups(here, OLD)
        else:
            yield Cgroups(here, UNIFIED)
            if here != point:
                yield Cgroups(here.parent, UNIFIED)


def _memberships(text: str) -> Iterator[tuple[str, str]]:
    """Controllers, and the group that we are in; the unified hierarchy has none by name."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts(text: str) -> Iterator[tuple[str, str, Path, list[str]]]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) > 4 and len(kinds) > 2 and kinds[0] in ("cgroup", "cgroup2"):
            root, point = (_OCTAL.sub(lambda found: chr(int(found[1], 8)), field) for field in fields[3:5])
            yield kinds[0], root, Path(point), kinds[2].split(",")


def _works(place: Cgroups) -> bool:
    if place.version is UNIFIED:
        with suppress(OSError):  # it is, or may not be; what counts is whether a group below has it
            (place.below / "cgroup.subtree_control").write_text("+memory")
    try:
        group = place.make(1 << 30)
    except OSError:
        return False
    works = os.access(group.path / _PROCESSES, os.W_OK)
    group.close()
    return works


def _somebodys(path: Path) -> bool:
    """Whether whoever made it, and is not us, is still there."""
    owner = path.name.removeprefix(PREFIX).partition("-")[0]
    return owner.isdigit() and int(owner) != os.getpid() and Path(f"/proc/{owner}").exists()
