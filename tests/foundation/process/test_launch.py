import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.process import launch
from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.errors import LaunchError

LAUNCHER = [sys.executable, "-I", "-S", str(launch.__file__)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCHER, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_program_takes_the_launchers_place() -> None:
    done = run("--parent", str(os.getpid()), "--", "sh", "-c", "echo $$; echo $PPID; exit 3")
    assert done.returncode == 3
    assert done.stdout.split()[1] == str(os.getpid())


def test_it_runs_as_a_module_too() -> None:
    command = [sys.executable, "-m", "foundation.process.launch", "--", "true"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--", "/no/such/program"], "cannot execute /no/such/program: No such file or directory"),
        (["--", "/etc/passwd"], "cannot execute /etc/passwd: Permission denied"),
        (["--", "/etc"], "cannot execute /etc: Permission denied"),
        (["--parent", "1234567", "--", "true"], "the parent 1234567 is gone"),
        (["--limit", "wings=2", "--", "true"], "there is no limit called wings"),
        (["--limit", "nofile=many", "--", "true"], "the launcher's option --limit needs a number"),
        (["--nice", "--", "true"], "the launcher's option --nice needs a number"),
        (["--colour", "1", "--", "true"], "the launcher does not know the option --colour"),
        (["--"], "the launcher was given no program"),
        ([], "the launcher was given no program"),
    ],
)
def test_a_failure_is_one_sentence_and_its_own_code(arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (launch.FAILED, "", sentence + "\n")


@pytest.mark.parametrize(
    ("program", "reason"),
    [("/no/such/program", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
async def test_the_parent_is_told(program: str, reason: str) -> None:
    with pytest.raises(LaunchError) as caught:
        await Child.spawn(Command(name="thing", argv=(program,)))
    assert caught.value.sentence == f"thing was not started: cannot execute {program}: {reason}"


async def test_a_program_without_a_known_format_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no shebang")
    broken.chmod(0o755)
    with pytest.raises(LaunchError, match="Exec format error"):
        await Child.spawn(Command(name="thing", argv=(str(broken),)))


async def test_a_launcher_costs_little() -> None:
    """Some 20 ms of a processor; the bound only catches an import that does not belong there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        child = await Child.spawn(Command(name="true", argv=("true",)))
        await child.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5 * 0.5


def test_it_imports_next_to_nothing() -> None:
    code = f"import sys; exec(open({launch.__file__!r}).read(), {{'__name__': 'it'}}); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"enum", "re", "argparse", "signal", "foundation", "typing"} & set(modules.stdout.split())


async def test_spawns_side_by_side() -> None:
    children: list[Child] = await asyncio.gather(
        *(Child.spawn(Command(name=str(n), argv=("sh", "-c", f"exit {n}"))) for n in range(20))
    )
    assert [(await child.wait()).code for child in children] == list(range(20))
