import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from foundation.engines import sockets
from foundation.engines.errors import (
    DataInUseError,
    DirectoryError,
    EngineError,
    ForeignDataError,
    SocketPathError,
    StartError,
)
from foundation.engines.postgres import Postgres
from foundation.engines.testing import CARELESS, fresh_database
from foundation.process.supervised import State
from foundation.process.supervision import Supervision
from foundation.process.testing import gone, until

Make = Callable[[], Postgres]


async def asked(url: str, query: str) -> object:
    connection: asyncpg.Connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


async def test_data_outlives_the_server(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        await asked(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        first = postgres.url
    async with make_postgres() as postgres:
        assert await asked(postgres.url, "SELECT answer FROM kept") == 42
        assert postgres.url != first  # a socket of its own each time


async def test_it_is_configured_as_the_platform_needs(directory: Path) -> None:
    async with Postgres(directory / "postgres") as postgres:
        expected = {
            "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "listen_addresses": "",
            "TimeZone": "UTC", "server_encoding": "UTF8", "max_wal_size": "4GB", "password_encryption": "scram-sha-256",
        }  # fmt: skip
        for name, value in expected.items():
            assert await asked(postgres.url, f"SHOW {name}") == value, name
        locale = "SELECT datlocprovider::text || ' ' || datlocale FROM pg_database WHERE datname = 'postgres'"
        assert await asked(postgres.url, locale) == "b C.UTF-8"


async def test_nobody_enters_without_the_password(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asked(postgres.url_of("postgres", password="wrong"), "SELECT 1")
        remembered = postgres.directory / "socket"
        socket_directory = remembered.read_text().strip()
        assert socket_directory in postgres.url
        modes = [
            mode_of(path) for path in (socket_directory, postgres.directory, postgres.directory / "password")
        ]
        assert modes == [0o700, 0o700, 0o600]
        assert postgres.pid is not None
        server = psutil.Process(postgres.pid)
        assert not [
            connection for connection in server.net_connections() if connection.family.name != "AF_UNIX"
        ]
    assert not remembered.exists()


async def test_the_password_is_nowhere_to_be_read(directory: Path) -> None:
    lines: list[str] = []
    async with Postgres(
        directory / "postgres", settings=CARELESS, sink=lambda line: lines.append(line.text)
    ) as postgres:
        password = (postgres.directory / "password").read_text().strip()
        with pytest.raises(asyncpg.PostgresError):
            await asked(postgres.url, "SELECT 'planted secret' FROM nowhere")
        assert postgres.pid is not None
        server = psutil.Process(postgres.pid)
        shown = [*lines, *server.cmdline(), *(f"{key}={value}" for key, value in server.environ().items())]
        for process in server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a session that just ended
                shown += process.cmdline()
    assert not [text for text in shown if password in text or "planted secret" in text]
    assert password not in repr(postgres)


@pytest.mark.parametrize(
    "name", ["with spaces", 'it\'s \\ "quoted"', "ünïcode", "x" * 100, "d/" * 40 + "deep"]
)
async def test_any_path_will_do(directory: Path, name: str) -> None:
    async with Postgres(directory / name, settings=CARELESS) as postgres:
        assert await asked(postgres.url, "SELECT 1") == 1


async def test_it_comes_back_on_the_same_socket(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        url = postgres.url
        await asked(url, "CREATE TABLE counted (n int)")
        for n in range(5):
            await asked(url, "INSERT INTO counted VALUES (1) RETURNING n")
            pid = postgres.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: postgres.pid not in {None, pid})  # noqa: B023 - called at once
            await postgres.ready()
            assert postgres.url == url
            assert await asked(url, "SELECT count(*) FROM counted") == n + 1
            postgres._supervised.restarts.forgive()  # five at once would wait longer each time


async def test_a_socket_directory_that_was_tidied_away_is_made_again(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        url, pid, place = postgres.url, postgres.pid, postgres._socket_directory
        assert pid is not None
        assert place is not None
        shutil.rmtree(place)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: postgres.pid not in {None, pid})
        async with asyncio.timeout(30):
            await postgres.ready()
        assert await asked(url, "SELECT 1") == 1
        assert mode_of(place) == 0o700


def test_a_socket_directory_of_somebody_else_is_not_taken_over(directory: Path) -> None:
    open_to_all = directory / "tl-open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    link = directory / "tl-link"
    link.symlink_to(directory)
    for place in (open_to_all, link):
        with pytest.raises(SocketPathError):
            sockets.keep_directory(place)


async def test_a_busy_session_does_not_hold_up_the_restart(make_postgres: Make) -> None:
    """A backend in the middle of a computation does not notice that its server is gone: it is ended."""
    async with make_postgres() as postgres:
        busy: asyncpg.Connection = await asyncpg.connect(postgres.url)
        endless = asyncio.create_task(busy.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
        await until(lambda: sessions_of(postgres))
        pid = postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(asyncpg.PostgresConnectionError):
            await endless
        await until(lambda: postgres.pid not in {None, pid})
        await postgres.ready()
        assert await asked(postgres.url, "SELECT 1") == 1


async def test_a_killed_session_is_repaired_by_the_server_itself(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        pid = postgres.pid
        victim: asyncpg.Connection = await asyncpg.connect(postgres.url)
        os.kill(await victim.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
        victim.terminate()
        await until(postgres._serves)
        assert postgres.pid == pid
        assert postgres.state is State.READY


async def test_stop_ends_sessions_and_leaves_nothing(make_postgres: Make) -> None:
    postgres = make_postgres()
    await postgres.start()
    idle: asyncpg.Connection = await asyncpg.connect(postgres.url)
    busy: asyncpg.Connection = await asyncpg.connect(postgres.url)
    endless = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    assert postgres.pid is not None
    pids = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
    async with asyncio.timeout(30):
        await postgres.stop()
    await gone(pids, 0.0)
    with pytest.raises(asyncpg.PostgresError):
        await endless
    idle.terminate()
    assert not (postgres.directory / "cluster" / "postmaster.pid").exists()


async def test_stop_without_grace_leaves_nothing_either(make_postgres: Make) -> None:
    postgres = make_postgres()
    await postgres.start()
    assert postgres.pid is not None
    pids = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
    await postgres.stop(grace=0)
    await gone(pids, 0.0)
    async with make_postgres() as again:
        assert await asked(again.url, "SELECT 1") == 1


async def test_a_server_that_cannot_stop_is_gone_by_the_deadline(make_postgres: Make) -> None:
    """It hangs, and a busy session would outlive it: killing the server alone is not enough."""
    postgres, everything = make_postgres(), Supervision(within=4.0)
    await everything.start(postgres)
    busy: asyncpg.Connection = await asyncpg.connect(postgres.url)
    endless = asyncio.create_task(busy.execute("DO $$ BEGIN LOOP END LOOP; END $$"))
    await until(lambda: sessions_of(postgres))
    assert postgres.pid is not None
    pids = [postgres.pid, *(child.pid for child in psutil.Process(postgres.pid).children(recursive=True))]
    os.kill(postgres.pid, signal.SIGSTOP)
    async with asyncio.timeout(30):
        await everything.stop()
    await gone(pids)
    with pytest.raises(asyncpg.PostgresConnectionError):
        await endless
    async with make_postgres() as again:
        assert await asked(again.url, "SELECT 1") == 1


async def sessions_of(postgres: Postgres) -> object:
    return await asked(postgres.url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %'")


async def test_a_stale_pid_file_that_names_a_living_stranger(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        data = postgres.directory / "cluster"
        left = (data / "postmaster.pid").read_text().splitlines()
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        (data / "postmaster.pid").write_text("\n".join([str(stranger.pid), *left[1:], ""]))
        async with make_postgres() as postgres:
            assert await asked(postgres.url, "SELECT 1") == 1
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_two_on_one_directory(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        with pytest.raises(DataInUseError) as caught:
            await make_postgres().start()
        assert caught.value.sentence.endswith(
            f"is in use by process {os.getpid()} (postgres runs there already)"
        )
        assert await asked(postgres.url, "SELECT 1") == 1


async def test_two_side_by_side(directory: Path) -> None:
    ours, theirs = (Postgres(directory / name, settings=CARELESS) for name in ("ours", "theirs"))
    async with ours, theirs:
        await asked(ours.url, "CREATE DATABASE only_ours")
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asked(theirs.url_of("only_ours"), "SELECT 1")


async def test_databases_for_tests_are_fresh(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        async with fresh_database(postgres.url) as one, fresh_database(postgres.url) as other:
            await asked(one, "CREATE TABLE here AS SELECT 1")
            with pytest.raises(asyncpg.UndefinedTableError):
                await asked(other, "SELECT * FROM here")
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await asked(one, "SELECT 1")


async def test_a_cluster_is_whole_or_not_there(make_postgres: Make) -> None:
    postgres = make_postgres()
    starting = asyncio.create_task(postgres.start())
    half = postgres.directory / "cluster.new"
    await until((half / "base").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (postgres.directory / "cluster").exists()
    half.mkdir(exist_ok=True)  # as kill -9 would have left it
    (half / "PG_VERSION").write_text("1")
    async with make_postgres() as again:
        assert await asked(again.url, "SELECT 1") == 1
    assert not half.exists()


async def test_data_of_another_major_version(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        data = postgres.directory / "cluster"
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(ForeignDataError) as caught:
        await make_postgres().start()
    assert caught.value.sentence == (
        f"{data} was made by PostgreSQL 16, this is PostgreSQL 18: "
        "dump it with the old version and restore it here, or set it aside"
    )


async def test_a_lost_password_is_told(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        file = postgres.directory / "password"
    file.write_text("another")
    with pytest.raises(EngineError, match="does not hold the password of this PostgreSQL"):
        await make_postgres().start()
    file.write_text("")
    with pytest.raises(DirectoryError, match="holds no password: restore it"):
        await make_postgres().start()


async def test_a_broken_setting_is_told(directory: Path) -> None:
    with pytest.raises(StartError, match="contains errors"):
        await Postgres(directory / "postgres", settings={"no_such_setting": "1"}).start()


async def test_broken_data_is_told(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        log = postgres.directory / "cluster" / "pg_wal"
    shutil.rmtree(log)
    log.mkdir()
    with pytest.raises(StartError, match=r"postgres did not start: .*could not locate a valid checkpoint"):
        await make_postgres().start()


async def test_an_operators_own_settings_win(make_postgres: Make) -> None:
    async with make_postgres() as postgres:
        local = postgres.directory / "cluster" / "local.conf"
    local.write_text("work_mem = '7MB'\nmax_connections = 33\n")
    async with make_postgres() as postgres:
        assert await asked(postgres.url, "SHOW work_mem") == "7MB"
        assert await asked(postgres.url, "SHOW max_connections") == "33"


async def test_an_unwritable_directory_is_told() -> None:
    with pytest.raises(DirectoryError, match=r"^cannot use /proc/tieline: "):
        await Postgres(Path("/proc/tieline")).start()


async def test_a_file_in_the_way_is_told(directory: Path) -> None:
    (directory / "postgres").touch()
    with pytest.raises(DirectoryError, match=r"cannot use .*/postgres: File exists"):
        await Postgres(directory / "postgres").start()


def test_a_socket_directory_is_short_whatever_tmpdir_says(directory: Path) -> None:
    long = directory / ("x" * 100)
    long.mkdir()
    memory = directory / "socket"
    code = f"from pathlib import Path; from foundation.engines.sockets import *; print(fresh_directory(Path({str(memory)!r}), 'a.sock'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    made = Path(done.stdout.strip())
    assert made.parent == Path("/tmp")  # noqa: S108 - the directory is mkdtemp's
    sockets.forget_directory(memory)
    assert not made.exists()


def test_a_socket_path_that_is_too_long_is_told(directory: Path) -> None:
    with pytest.raises(SocketPathError, match="set TMPDIR to a shorter one"):
        sockets.fresh_directory(directory / "socket", "x" * 100)


def test_only_what_looks_like_ours_is_removed(directory: Path) -> None:
    precious, memory = directory / "precious", directory / "socket"
    precious.mkdir()
    memory.write_text(f"{precious}\n")
    sockets.forget_directory(memory)
    assert precious.exists()
    shutil.rmtree(precious)
