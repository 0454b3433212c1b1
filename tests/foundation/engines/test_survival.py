"""What no parent can clean up after: being killed itself. The parent here is a process of its own."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from foundation.engines.testing import Served, served
from foundation.process.testing import alive, gone

BUSY = "DO $$ BEGIN LOOP END LOOP; END $$"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on a real disk."""
    path = Path(tempfile.mkdtemp(prefix="tl-test-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@contextmanager
def parent(directory: Path) -> Iterator[tuple["subprocess.Popen[str]", Served]]:
    """Both engines below a parent that is killed at the end."""
    command = [sys.executable, "-m", "foundation.engines.testing", str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            yield process, Served(told["postgres"], told["nats"], tuple(told["pids"]))
        finally:
            process.kill()


def leave_in_order(directory: Path) -> None:
    """One more start, and an orderly stop: what the killed ones left outside the directory goes too."""
    remembered = Path((directory / "postgres" / "socket").read_text().strip())
    assert remembered.exists()
    with served(directory):
        assert not remembered.exists()
    assert not (directory / "postgres" / "socket").exists()


def everything_of(there: Served) -> set[int]:
    servers = [psutil.Process(pid) for pid in there.pids]
    return {process.pid for server in servers for process in [server, *server.children(recursive=True)]}


async def test_ten_times_killed_and_started_again_at_once(disk: Path) -> None:
    """With sessions in the middle of their work; what was committed or acknowledged is there each time."""
    left: set[int] = set()
    took = []
    for n in range(10):
        began = time.monotonic()
        with parent(disk) as (process, there):
            took.append(time.monotonic() - began)
            database: asyncpg.Connection = await asyncpg.connect(there.postgres)
            await database.execute("CREATE TABLE IF NOT EXISTS counted (n int)")
            await database.execute("INSERT INTO counted VALUES ($1)", n)
            assert await database.fetchval("SELECT count(*) FROM counted") == n + 1
            bus = await nats.connect(there.nats, allow_reconnect=False)
            await bus.jetstream().add_stream(name="counted", subjects=["counted"])
            await bus.jetstream().publish("counted", b"")
            assert (await bus.jetstream().stream_info("counted")).state.messages == n + 1
            await bus.close()
            endless = asyncio.create_task(database.execute(BUSY))
            await asyncio.sleep(0)
            left |= everything_of(there)
            process.kill()
            with pytest.raises(asyncpg.PostgresConnectionError):
                await endless
    await gone(left, 30.0)
    leave_in_order(disk)
    assert max(took[1:]) < 60, took


async def test_nothing_outlives_a_killed_parent(directory: Path) -> None:
    with parent(directory) as (process, there):
        everything = everything_of(there)
        assert len(everything) > 5
        process.kill()
    await gone(everything, 30.0)
    leave_in_order(directory)


async def test_a_lost_parent_and_a_lost_server_at_once(directory: Path) -> None:
    """The server cannot pass the news on to its sessions, and a busy one does not ask: the next start ends it."""
    with parent(directory) as (process, there):
        database: asyncpg.Connection = await asyncpg.connect(there.postgres)
        endless = asyncio.create_task(database.execute(BUSY))
        await asyncio.sleep(0.1)
        everything = everything_of(there)
        psutil.Process(there.pids[0]).kill()
        process.kill()
    began = time.monotonic()
    with parent(directory) as (_, again):
        assert time.monotonic() - began < 60
        await gone(everything, 0.0)
        with pytest.raises(asyncpg.PostgresConnectionError):
            await endless
        assert again.pids
    leave_in_order(directory)


def test_suites_side_by_side() -> None:
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        suites = list(pool.map(stack.enter_context, [served(), served()]))
        assert len({suite.postgres for suite in suites} | {suite.nats for suite in suites}) == 4
        pids = [pid for suite in suites for pid in suite.pids]
        assert len(set(pids)) == 4
        asyncio.run(_answer(suites))
    assert not [pid for pid in pids if alive(pid)]


async def _answer(suites: list[Served]) -> None:
    for suite in suites:
        connection: asyncpg.Connection = await asyncpg.connect(suite.postgres)
        assert await connection.fetchval("SHOW fsync") == "off"
        await connection.close()
        await (await nats.connect(suite.nats)).close()


def _their_python(repository: Path, uid: int) -> tuple[str, ...]:
    """An interpreter that this user may run, with everything we have installed; or the test is skipped."""
    libraries = os.pathsep.join(
        [str(repository), *(path for path in sys.path if path.endswith("site-packages"))]
    )
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        python = (*user, "env", f"PYTHONPATH={libraries}", candidate)
        look = [
            *python,
            "-c",
            "import asyncpg, nats, foundation.engines.binaries as found; found.nats_binary()",
        ]
        if subprocess.run(look, capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(f"no {version} that uid {uid} may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user already")
@pytest.mark.parametrize("uid", [65534, 54321], ids=["nobody", "nameless"])
def test_as_an_ordinary_user(repository: Path, uid: int) -> None:
    with served(python=_their_python(repository, uid)) as there:
        assert {psutil.Process(pid).uids().real for pid in there.pids} == {uid}
    assert not [pid for pid in there.pids if alive(pid)]


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user already")
async def test_an_ordinary_user_meets_a_directory_of_root(repository: Path, directory: Path) -> None:
    python = _their_python(repository, 65534)
    process = await asyncio.create_subprocess_exec(
        *python, "-m", "foundation.engines.testing", str(directory / "data"), stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    assert process.returncode == 2
    assert told.decode() == f"cannot use {directory}/data/postgres: Permission denied\n"
