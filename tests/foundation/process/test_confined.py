"""Confinement by itself: what is seen of the file system, for root and for an ordinary user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.process.child import Child
from foundation.process.command import Command, Confinement, Limits
from foundation.process.confined import missing, other_user, spawn_confined
from foundation.process.errors import LaunchError
from foundation.process.output import Line

NOBODY = 65534
USER = other_user(50)


async def run(
    script: str, confinement: Confinement, *, processes: int | None = None, cwd: Path | None = None
) -> list[str]:
    """What a shell says, confined; it is awaited to its end."""
    lines: list[str] = []

    def hear(line: Line) -> None:
        lines.append(line.text)

    command = Command(name="sh", argv=("sh", "-c", script), cwd=cwd, limits=Limits(processes=processes))
    child, listener = await spawn_confined(command, confinement, hear)
    listener.close()
    await child.wait()
    return lines


@pytest.mark.usefixtures("confinable")
async def test_places_lie_in_each_other_as_they_are_named(short_dir: Path) -> None:
    home, repository, data = short_dir / "home", short_dir / "home/repo", short_dir / "home/repo/data"
    socket = data / "sockets"
    socket.mkdir(parents=True)
    for place in (home, repository, data, socket):
        place.chmod(0o755)
        (place / "file").write_text("x")
    confinement = Confinement(user=USER, hide=(home, data), keep=(repository,), write=(socket,))
    script = f"""
        cd {home}; ls | xargs; cd repo; ls | xargs; cd data; ls | xargs; cd sockets; ls | xargs
        echo new > new && cat new; echo no 2>/dev/null > ../no || echo refused
        echo no 2>/dev/null > {repository}/no || echo refused
    """
    assert await run(script, confinement) == [
        "repo", "data file", "sockets", "file", "new", "refused", "refused",
    ]  # fmt: skip
    assert (socket / "new").read_text() == "new\n"
    assert not (repository / "no").exists()


@pytest.mark.usefixtures("confinable")
@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user already")
async def test_where_only_root_may_pass_a_way_is_made_to_what_is_kept_alone(short_dir: Path) -> None:
    closed = short_dir / "closed"
    for name in ("kept", "other"):
        (closed / name).mkdir(parents=True)
        (closed / name / "file").write_text("x")
    closed.chmod(0o700)
    (closed / "kept").chmod(0o755)
    script = f"cat {closed}/kept/file; echo; ls {closed} | xargs; id -u"
    assert await run(script, Confinement(user=USER, keep=(closed / "kept",))) == ["x", "kept", str(USER)]


@pytest.mark.usefixtures("confinable")
async def test_where_it_stands_is_no_way_behind_a_cover(short_dir: Path) -> None:
    kept = short_dir / "home" / "kept"
    kept.mkdir(parents=True)
    (kept.parent / "secret").write_text("x")
    confinement = Confinement(user=USER, hide=(short_dir / "home",), keep=(kept,))
    assert await run("ls .. | xargs", confinement, cwd=kept) == ["kept"]


@pytest.mark.usefixtures("confinable")
async def test_a_bomb_of_processes_is_bounded() -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done 2>/dev/null; echo all"
    assert await run(script, Confinement(user=USER), processes=4) != ["all"]
    assert await run("echo all", Confinement(user=USER), processes=4) == ["all"]


@pytest.mark.usefixtures("confinable")
async def test_a_confined_child_is_signalled_and_ends_like_any_other() -> None:
    child, listener = await spawn_confined(Command(name="cat", argv=("cat",), stdin_pipe=True), Confinement())
    listener.close()
    assert missing(child.pid) == ""
    assert (await child.stop(grace=20.0)).signal is signal.SIGTERM


async def test_a_step_that_fails_refuses_the_program(short_dir: Path) -> None:
    with pytest.raises(LaunchError, match=r"sh was not started: it cannot be confined: .*gone"):
        await run("true", Confinement(user=USER, keep=(short_dir / "gone",)))


async def test_who_is_not_confined_is_found_out() -> None:
    child = await Child.spawn(Command(name="cat", argv=("cat",), stdin_pipe=True))
    assert missing(child.pid) == "it shares namespaces with us (user, mnt, net, ipc)"
    await child.stop(grace=20.0)
    assert missing(child.pid).startswith("nobody can look at it")


ORDINARY = """
import asyncio, os, sys
from pathlib import Path
from foundation.process.command import Command, Confinement
from foundation.process.confined import spawn_confined, unconfinable

async def main():
    if why := await unconfinable():
        return print("unconfinable", why)
    data = Path(sys.argv[1])
    (data / "key").write_text("canary")
    (data / "key").chmod(0o600)
    script = f"cat {data}/key; id -u; kill -0 $PPID || echo no signal; echo > {data.parent}/x || echo no file;"
    script += "cat /proc/$PPID/environ || echo no look; grep -c : /proc/net/dev; unshare -U true || echo no more"
    lines = []
    command = Command(name="sh", argv=("sh", "-c", f"exec 2>/dev/null; {script}"))
    child, listener = await spawn_confined(command, Confinement(hide=(data,)), lambda line: lines.append(line.text))
    await child.wait()
    print(*lines, sep=", ")

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user already")
def test_an_ordinary_user_confines_as_well(as_nobody: Callable[..., str], short_dir: Path) -> None:
    data = short_dir / "data"
    data.mkdir()
    for place in (short_dir, data):
        place.chmod(0o777)
    said = as_nobody(ORDINARY, str(data))
    if said.startswith("unconfinable"):
        pytest.skip(f"this machine confines no process: {said}")
    assert said == f"{NOBODY}, no signal, no file, no look, 1, no more"


@pytest.fixture
def as_nobody(repository: Path) -> Callable[..., str]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

    def run_it(code: str, *arguments: str) -> str:
        for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
            python = (*user, "env", f"PYTHONPATH={repository}", candidate)
            if subprocess.run(
                (*python, "-c", "import foundation.process"), capture_output=True, check=False
            ).returncode:
                continue
            done = subprocess.run(
                (*python, "-c", code, *arguments), capture_output=True, text=True, check=True
            )
            return done.stdout.strip()
        pytest.skip("no interpreter of this version that an ordinary user may run")

    return run_it
