import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.errors import LockHeldError, ProcessError
from foundation.process.lock import OwnerLock, TailLock, holders
from foundation.process.testing import until

Python = Callable[..., Command]
Spawn = Callable[..., Awaitable[Child]]

HOLD = "import sys, time; from foundation.process.lock import *; lock = OwnerLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_the_second_owner_is_told_who_the_first_is(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "owner.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, env={"PYTHONPATH": str(repository)}
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeldError) as caught:
            OwnerLock(path)
        assert caught.value.pid == holder.pid
        assert (
            caught.value.sentence
            == f"{tmp_path} is in use by process {holder.pid} (tieline runs there already)"
        )
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with OwnerLock(path):  # free at once after kill -9
        assert path.read_text().strip() == str(os.getpid())


def test_an_owner_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with OwnerLock(tmp_path / "owner.lock") as lock:
            with pytest.raises(LockHeldError):
                OwnerLock(tmp_path / "owner.lock")
            lock.close()


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"cannot write in .*/nowhere: No such file or directory"):
        OwnerLock(tmp_path / "nowhere" / "owner.lock")


SPLIT = """
import os, signal, sys
# A grandchild with a session of its own that ignores everything polite, as a busy database backend would.
if os.fork() == 0:
    os.setsid()
    for number in (1, 2, 3, 15):
        signal.signal(number, signal.SIG_IGN)
    print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


async def test_the_tail_lock_waits_for_the_very_last(python: Python, spawn: Spawn, tmp_path: Path) -> None:
    lock = TailLock(tmp_path / "tail.lock")
    child = await spawn(python(SPLIT, pass_fds=(await lock.acquire(1),)))
    lock.close()
    await until(lambda: child.tail)
    grandchild = int(child.tail)
    assert set(holders(lock.path)) == {child.pid, grandchild}
    child.signal(signal.SIGKILL)
    await child.wait()
    waiting = asyncio.create_task(TailLock(lock.path).acquire(60))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    os.kill(grandchild, signal.SIGKILL)
    os.close(await waiting)


async def test_patience_with_the_last_ends(python: Python, spawn: Spawn, tmp_path: Path) -> None:
    lock = TailLock(tmp_path / "tail.lock")
    child = await spawn(python(SPLIT, pass_fds=(await lock.acquire(1),)))
    lock.close()
    await until(lambda: child.tail)
    child.signal(signal.SIGKILL)
    began = time.monotonic()
    await lock.acquire(0.3)
    lock.close()
    assert time.monotonic() - began > 0.25


async def test_a_mere_reader_of_the_lock_file_is_left_alone(tmp_path: Path) -> None:
    lock = TailLock(tmp_path / "tail.lock")
    await lock.acquire(1)
    with lock.path.open() as file:
        reader = await asyncio.create_subprocess_exec("sleep", "60", stdin=file)
    try:
        assert list(holders(lock.path)) == []
    finally:
        reader.kill()
        await reader.wait()
        lock.close()


async def test_a_cancelled_wait_lets_go(tmp_path: Path) -> None:
    lock = TailLock(tmp_path / "tail.lock")
    await lock.acquire(1)
    waiting = asyncio.create_task(TailLock(lock.path).acquire(60))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lock.close()
    os.close(await TailLock(lock.path).acquire(0))
