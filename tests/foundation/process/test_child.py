import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from foundation.process.child import Child
from foundation.process.command import Command, Limits
from foundation.process.errors import LaunchError
from foundation.process.testing import gone, until

FOREVER = "import signal\nprint('up')\nwhile True: signal.pause()"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER

Python = Callable[..., Command]
Spawn = Callable[..., Awaitable[Child]]


@pytest.mark.parametrize("code", [0, 1, 3, 125, 255])
async def test_an_exit_code_is_told(python: Python, spawn: Spawn, code: int) -> None:
    end = await (await spawn(python(f"raise SystemExit({code})"))).wait()
    assert (end.code, end.signal, end.clean) == (code, None, code == 0)
    assert end.sentence == f"child exited with code {code}"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGTERM", "SIGABRT"])
async def test_death_by_signal_is_never_a_code(python: Python, spawn: Spawn, name: str) -> None:
    end = await (await spawn(python(f"import os, signal; os.kill(os.getpid(), signal.{name})"))).wait()
    assert (end.code, end.signal) == (None, signal.Signals[name])
    assert end.sentence == f"child was killed by {name}"


async def test_a_real_time_signal_has_a_sentence_too(python: Python, spawn: Spawn) -> None:
    end = await (await spawn(python("import os; os.kill(os.getpid(), 40)"))).wait()
    assert end.sentence == "child was killed by signal 40"


async def test_stop_asks_first(python: Python, spawn: Spawn) -> None:
    polite = "import signal, sys\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(7))\n" + FOREVER
    child = await spawn(python(polite, stop_signal=signal.SIGINT))
    await until(lambda: "up" in child.tail)
    assert (await child.stop()).code == 7


async def test_stop_insists_after_the_grace(python: Python, spawn: Spawn) -> None:
    child = await spawn(python(DEAF, grace=0.2))
    await until(lambda: "up" in child.tail)
    began = time.monotonic()
    assert (await child.stop()).signal is signal.SIGKILL
    assert time.monotonic() - began > 0.15


async def test_stop_twice_and_after_the_end(python: Python, spawn: Spawn) -> None:
    child = await spawn(python(FOREVER))
    first, second = await asyncio.gather(child.stop(), child.stop())
    assert first == second == await child.stop()
    child.kill()
    child.signal(signal.SIGTERM)


async def test_a_cancelled_stop_kills_and_stays_cancelled(python: Python, spawn: Spawn) -> None:
    child = await spawn(python(DEAF, grace=60))
    await until(lambda: "up" in child.tail)
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert (await child.wait()).signal is signal.SIGKILL


async def test_a_cancelled_spawn_leaves_nothing(python: Python) -> None:
    before = {process.pid for process in psutil.Process().children()}
    spawning = asyncio.create_task(Child.spawn(python(DEAF)))
    await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await until(lambda: {process.pid for process in psutil.Process().children()} <= before)


async def test_a_grandchild_does_not_outlive_its_parent(python: Python, spawn: Spawn) -> None:
    code = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {DEAF!r}]).pid)"
    child = await spawn(python(code))
    assert (await child.wait()).clean
    await gone([int(child.tail.split()[0])])


async def test_a_grandchild_that_left_the_group_does_not_hold_up_the_end(
    python: Python, spawn: Spawn
) -> None:
    code = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, '-u', '-c', {FOREVER!r}], start_new_session=True).pid)
"""
    child = await spawn(python(code))
    async with asyncio.timeout(30):
        await child.wait()
    escaped = int(child.tail.split()[0])
    os.kill(escaped, signal.SIGKILL)
    await gone([escaped])


async def test_the_environment_is_clean(spawn: Spawn) -> None:
    os.environ["TIELINE_TEST_LEAK"] = "secret"
    try:
        child = await spawn(Command(name="env", argv=("env",)))
        await child.wait()
    finally:
        del os.environ["TIELINE_TEST_LEAK"]
    assert "PATH=" in child.tail
    assert "TIELINE_TEST_LEAK" not in child.tail


def test_the_environment_is_not_shown() -> None:
    assert "hunter2" not in repr(Command(name="x", argv=("x",), env={"PASSWORD": "hunter2"}))


async def test_only_the_named_descriptors_are_passed(python: Python, spawn: Spawn) -> None:
    code = """
import json, os
seen = [int(fd) for fd in os.listdir("/proc/self/fd")]
print(json.dumps(sorted(fd for fd in seen if os.path.exists(f"/proc/self/fd/{fd}"))))
"""
    passed, inheritable = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)  # noqa: FBT003 - takes no keywords
    try:
        child = await spawn(python(code, pass_fds=(passed,)))
        await child.wait()
    finally:
        os.close(passed)
        os.close(inheritable)
    assert json.loads(child.tail) == [0, 1, 2, passed]


async def test_limits_hold(python: Python, spawn: Spawn) -> None:
    code = """
import os, resource
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE), os.nice(0))
bytearray(256 << 20)
"""
    child = await spawn(python(code, limits=Limits(data=128 << 20, files=99, nice=5)))
    assert (await child.wait()).code == 1
    assert "(99, 99) (0, 0) 5" in child.tail
    assert "MemoryError" in child.tail


async def test_the_stdin_pipe_carries_and_its_end_tells(python: Python, spawn: Spawn) -> None:
    code = "import sys\nprint(len(sys.stdin.buffer.read(300_000)), flush=True)\nsys.stdin.read()\nprint('parent gone')"
    child = await spawn(python(code, stdin_pipe=True))
    await child.send(b"x" * 300_000)
    child.hang_up()
    assert (await child.wait()).clean
    assert child.tail.split("\n")[:2] == ["300000", "parent gone"]


async def test_without_a_stdin_pipe_there_is_nothing_to_read(python: Python, spawn: Spawn) -> None:
    child = await spawn(python("import sys; print(repr(sys.stdin.read()))"))
    await child.wait()
    assert child.tail == "''\n"
    with pytest.raises(LaunchError, match="without a stdin pipe"):
        await child.send(b"x")


async def test_a_thread_may_not_start_children(python: Python) -> None:
    with pytest.raises(LaunchError, match="main thread"):
        await asyncio.to_thread(lambda: asyncio.run(Child.spawn(python(FOREVER))))


async def test_the_working_directory(spawn: Spawn, python: Python, tmp_path: Path) -> None:
    child = await spawn(python("import os; print(os.getcwd())", cwd=tmp_path))
    await child.wait()
    assert child.tail == f"{tmp_path}\n"
    with pytest.raises(LaunchError, match=r"child was not started in .*/nowhere: No such file"):
        await spawn(python(FOREVER, cwd=tmp_path / "nowhere"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must become somebody else")
async def test_root_becomes_an_ordinary_user_who_owns_its_files(
    python: Python, spawn: Spawn, tmp_path: Path
) -> None:
    code = "import os, pwd; print(os.geteuid() != 0, bool(pwd.getpwuid(os.geteuid()))); open('mine', 'w').close()"
    child = await spawn(python(code, ordinary_user=True, cwd=tmp_path))
    await child.wait()
    assert child.tail == "True True\n"
    assert (tmp_path / "mine").stat().st_uid == 0


PARENT = """
import asyncio, sys
from foundation.process.child import Child
from foundation.process.command import Command, clean_env

DEAF = "import signal; signal.signal(15, signal.SIG_IGN); signal.signal(2, signal.SIG_IGN)\\nwhile True: signal.pause()"
NESTED = sys.argv[1] if len(sys.argv) > 1 else ""

async def main():
    deaf = (sys.executable, "-I", "-c", DEAF)
    children = [await Child.spawn(Command(name="deaf", argv=deaf)) for _ in range(2)]
    children.append(await Child.spawn(Command(name="user", argv=deaf, ordinary_user=True)))
    if NESTED:
        nested = Command(name="nested", argv=(sys.executable, "-c", NESTED), env=clean_env("PYTHONPATH"))
        children.append(await Child.spawn(nested, sink=lambda line: print(line.text, flush=True)))
    print(*(child.pid for child in children), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_is_left_when_the_parent_is_killed(repository: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, PARENT, env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    pids: list[int] = []
    while len(pids) < 7:  # four children, and three of the nested one
        line = await asyncio.wait_for(parent.stdout.readline(), 30)
        assert line, "the parent died early"
        pids += map(int, line.split())
    parent.kill()
    await parent.wait()
    await gone(pids)
