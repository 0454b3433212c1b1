"""Engines on a small disk of their own, which only their process sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def on_a_disk(size: str, directory: Path, repository: Path, script: str) -> list[str]:
    """Run the script in a mount namespace where `directory` is a disk of that size."""
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(directory), sys.executable, script],
        capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk of its own to be had: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FULL = """
import asyncio, sys
from pathlib import Path
from foundation.engines.errors import DiskFullError
from foundation.engines.postgres import Postgres
from foundation.engines.nats import Nats
disk = Path(sys.argv[1])
try:
    asyncio.run(Postgres(disk / "postgres").start())
except DiskFullError as error:
    print(error.sentence)
with open(disk / "ballast", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)): pass
    except OSError:
        pass
try:
    asyncio.run(Nats(disk / "nats").start())
except DiskFullError as error:
    print(error.sentence)
print(sorted(path.name for path in (disk / "postgres").iterdir()))
"""


def test_a_full_disk_is_told(directory: Path, repository: Path) -> None:
    postgres, nats, left = on_a_disk("16m", directory, repository, FULL)
    assert postgres == f"the disk that holds {directory}/postgres is full"
    assert nats == f"the disk that holds {directory}/nats is full"
    assert "cluster" not in left


FILLING = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from foundation.engines.postgres import Postgres
disk = Path(sys.argv[1])

async def main():
    async with Postgres(disk / "postgres", on_change=lambda state, _: states.append(str(state))) as postgres:
        ballast = os.open(disk / "ballast", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(ballast, 0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - (8 << 20))
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("CREATE TABLE filling (body text)")
        committed = 0
        try:
            while True:
                await connection.execute("INSERT INTO filling SELECT repeat(md5(random()::text), 3000)")
                committed += 1
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            print(type(error).__name__, file=sys.stderr)
        connection.terminate()
        os.ftruncate(ballast, 0)
        async with asyncio.timeout(60):
            while not await postgres._serves():
                await asyncio.sleep(0.05)
        connection = await asyncpg.connect(postgres.url)
        print(committed > 0, await connection.fetchval("SELECT count(*) FROM filling") >= committed)
        await connection.execute("INSERT INTO filling VALUES ('room again')")
        await connection.close()
        print(states[-1])

states = []
asyncio.run(main())
"""


def test_a_disk_that_fills_and_has_room_again(directory: Path, repository: Path) -> None:
    """Nothing that was committed is lost, and nobody has to start anything by hand."""
    assert on_a_disk("120m", directory, repository, FILLING) == ["True True", "ready"]
