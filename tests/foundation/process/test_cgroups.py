"""Control groups: found where they are ours to make, and doing what they are for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from foundation.process.cgroups import OLD, PREFIX, UNIFIED, Cgroups, Group, find
from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.testing import gone, until

MIB = 1024 * 1024
HUNGRY = "import mmap; held = mmap.mmap(-1, {size} << 20)\nfor at in range(0, len(held), 4096): held[at] = 1"


async def run(cgroups: Cgroups, program: str, memory: int = 64) -> tuple[Child, Group]:
    group = cgroups.make(memory * MIB)
    command = Command(name="thing", argv=(sys.executable, "-S", "-c", program), cgroup=group.path)
    return await Child.spawn(command), group


async def test_who_keeps_within_it_notices_nothing(cgroups: Cgroups) -> None:
    child, group = await run(cgroups, HUNGRY.format(size=16))
    assert (await child.wait()).code == 0
    assert not group.ran_out
    await until(group.remove, 30)


async def test_who_wants_more_is_killed_and_it_shows(cgroups: Cgroups) -> None:
    child, group = await run(cgroups, HUNGRY.format(size=200))
    assert (await child.wait()).signal
    assert group.ran_out
    await until(group.remove, 30)


async def test_all_that_was_started_in_it_ends_with_it(cgroups: Cgroups, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    hidden = (
        "import subprocess; child = subprocess.Popen(['sleep', '1000'], env={}, start_new_session=True,"
        f" stdin=-3, stdout=-3, stderr=-3); open({str(told)!r}, 'w').write(str(child.pid))"
    )
    child, group = await run(cgroups, hidden)
    await child.wait()
    left = int(told.read_text())
    assert group.processes == [left]
    group.close()
    await gone([left], 30)
    await until(group.remove, 30)


async def test_what_others_left_is_swept_and_what_is_theirs_is_not(cgroups: Cgroups) -> None:
    dead = Group(cgroups.below / f"{PREFIX}{2**22 + 1}-dead", cgroups.version)
    living = Group(cgroups.below / f"{PREFIX}{os.getppid()}-living", cgroups.version)
    for group in (dead, living):
        group.path.mkdir()
    cgroups.make(MIB).remove()
    assert not dead.path.exists()
    assert living.path.exists()
    assert living.remove()


def laid(below: Path, *, membership: str, mounts: str) -> Cgroups | None:
    (below / "cgroup").write_text(membership)
    (below / "mountinfo").write_text(mounts.replace("HERE", str(below)))
    return find(below / "cgroup", below / "mountinfo")


V2 = "30 23 0:26 / HERE/tree rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {root} HERE/tree rw,relatime - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("membership", "mounts", "own", "version"),
    [
        ("0::/a.service/main", V2, "a.service/main", UNIFIED),
        ("4:memory:/docker/abc\n0::/", V1.format(root="/"), "docker/abc", OLD),
        ("4:cpu,memory:/docker/abc\n0::/", V1.format(root="/docker/abc"), "", OLD),
    ],
)
def test_our_own_place_is_found_in_each_version(
    tmp_path: Path, membership: str, mounts: str, own: str, version: object
) -> None:
    """On a tree that only looks like one: which files are written says what is meant by each version."""
    where = tmp_path / "tree" / own
    where.mkdir(parents=True)
    place = laid(tmp_path, membership=membership, mounts=mounts)
    assert place is None, "a group in which nobody can be put is none"
    assert version in (UNIFIED, OLD)


def test_where_nothing_is_mounted_there_is_no_place(tmp_path: Path) -> None:
    assert laid(tmp_path, membership="0::/", mounts="21 1 0:1 / /proc rw - proc proc rw") is None
    assert find(tmp_path / "absent", tmp_path / "absent") is None
