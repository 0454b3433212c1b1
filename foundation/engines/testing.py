"""Real engines for tests: quick, isolated, and gone with whoever asked for them.

`served()` runs both engines in a process of its own, so a whole test session (one worker of it) can share
them whatever event loops its tests run in; they end when the session does, by `kill -9` too, because the end
of a pipe tells them. `fresh_database` makes one test's database by copying a prepared one.

    python -m foundation.engines.testing [DIRECTORY]     until stdin ends
"""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from foundation.engines.errors import EngineError
from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.process.supervision import Supervision

# A test's data need not survive a power cut. It still survives the server's death.
CARELESS = MappingProxyType(
    {
        "fsync": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "shared_buffers": "32MB",
        "min_wal_size": "32MB",
        "max_wal_size": "128MB",
        "dynamic_shared_memory_type": "mmap",  # in the data directory, so it goes with a killed test's directory
    }
)

_MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp below it
_ROOM = 1024 * 1024 * 1024  # containers often have a tiny one


@dataclass(frozen=True, slots=True)
class Served:
    """Where the engines are, and which processes they are."""

    postgres: str
    nats: str
    pids: tuple[int, ...]


@contextmanager
def served(directory: Path | None = None, python: tuple[str, ...] = (sys.executable,)) -> Iterator[Served]:
    """Both engines, on a directory of their own or on the given one, which is kept."""
    where = () if directory is None else (str(directory),)
    command = [*python, "-m", "foundation.engines.testing", *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        yield _told(host)  # leaving closes its stdin, which it takes as the end, and waits for it


def quick_directory() -> Path:
    """A fresh directory in memory where there is room: a new database is 0.02 s there, 0.3 s on a disk."""
    roomy = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM
    return Path(tempfile.mkdtemp(prefix="tl-test-", dir=_MEMORY if roomy else None))


def _told(host: "subprocess.Popen[str]") -> Served:
    assert host.stdout is not None  # noqa: S101 - for the type checker
    line = host.stdout.readline()
    if not line:
        raise EngineError("the engines did not start; why stands on stderr")
    told = json.loads(line)
    return Served(told["postgres"], told["nats"], tuple(told["pids"]))


@asynccontextmanager
async def fresh_database(url: str, template: str = "template1") -> AsyncIterator[str]:
    """The URL of a new database; `template` may be one that a session has migrated once."""
    name = f"test_{secrets.token_hex(8)}"
    await _execute(url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    finally:
        await _execute(url, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(url: str, statement: str) -> None:
    connection: asyncpg.Connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def host(directory: Path) -> None:
    """Serve until stdin ends."""
    async with Supervision() as engines:
        postgres, nats = Postgres(directory / "postgres", settings=CARELESS), Nats(directory / "nats")
        await engines.start(postgres, nats)
        pids = tuple(pid for pid in (postgres.pid, nats.pid) if pid is not None)
        print(json.dumps(asdict(Served(postgres.url, nats.url, pids))), flush=True)  # noqa: T201 - its answer
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)  # nobody writes: readable means ended
        await ended.wait()


def main() -> int:
    own = quick_directory() if len(sys.argv) == 1 else None
    try:
        asyncio.run(host(own or Path(sys.argv[1])))
    except EngineError as error:
        print(error.sentence, file=sys.stderr)  # noqa: T201 - its answer
        return 2
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
