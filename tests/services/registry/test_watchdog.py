"""What a process keeps in its scratch folder, however it hides it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from foundation.process.testing import until
from services.registry.host.watchdog import MIB, SMALLEST, Patience, Watchdog, sizes


async def ended(scratch: Path, *, after: Callable[[], None] = lambda: None) -> str:
    """Why the watchdog ended a process with a quota of 1 MiB; `after` it has looked a few times."""
    reasons: list[str] = []
    looks = 0

    async def answers(_: float) -> bool:
        nonlocal looks
        looks += 1
        return True

    dog = Watchdog(
        answers=answers,
        end=reasons.append,
        memory_limit=1 << 60,
        scratch=scratch,
        scratch_quota=MIB,
        patience=Patience(look_seconds=0.01),
    )
    watching = asyncio.create_task(dog.watch(os.getpid()))
    await until(lambda: looks > 10 or watching.done(), 30)
    assert not reasons
    assert not watching.done()
    after()
    await until(lambda: reasons, 30)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return reasons[0]


def deep(folder: Path) -> None:
    """Deeper than a path can say."""
    here = os.open(folder, os.O_RDONLY)
    name = "deeper" * 40
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def many(folder: Path) -> None:
    for number in range(MIB // SMALLEST + 1):
        (folder / str(number)).touch()


def large(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "file").write_bytes(b"x" * (MIB + 1))


@pytest.mark.parametrize("fill", [large, many, deep])
async def test_who_keeps_more_than_its_quota_is_ended(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    (tmp_path / "few").write_bytes(b"x" * 1000)
    (tmp_path / "elsewhere").symlink_to("/")
    why = await ended(tmp_path, after=lambda: fill(tmp_path))
    assert why == "it kept more than 1 MiB in its scratch folder, which is its quota"


async def test_who_tidies_up_while_it_is_looked_at_is_watched_on(tmp_path: Path) -> None:
    stop = asyncio.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"a{number}" / "b").mkdir(parents=True)
            for number in range(20):
                (tmp_path / f"a{number}" / "b").rmdir()
                (tmp_path / f"a{number}").rmdir()

    churning = asyncio.create_task(asyncio.to_thread(churn))
    try:
        assert "which is its quota" in await ended(tmp_path, after=lambda: large(tmp_path))
    finally:
        stop.set()
        await churning


def test_a_folder_that_vanishes_while_it_is_measured_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"x" * 10_000)
    whole = sum(sizes(tmp_path))
    assert whole >= 20_000
    measured = sizes(tmp_path)
    for _ in range(3):
        next(measured)
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    assert sum(measured) < whole
