"""The product's own PostgreSQL, for as long as a block lasts, for code that has no event loop to supervise it.

A test or a bench runs many loops, one after the other, and between them nobody would read the server's
output: so it goes to a file, and the server dies with us by the launcher's death signal.
"""

import asyncio
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.engines import cluster
from foundation.engines.binaries import postgres_binaries
from foundation.engines.files import password_in
from foundation.process.command import Command, clean_env
from foundation.store.url import DEFAULT_PORT, DatabaseUrl

_SUPERUSER = "postgres"
_DEADLINE = 60.0
_INHERITED_STDERR = 2


@contextmanager
def postgres(**settings: str) -> Iterator[DatabaseUrl]:
    """The superuser's URL. `settings` are PostgreSQL's, over those that the product sets."""
    with tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp") as path:
        home = Path(path)
        data = home / "cluster"
        password = password_in(home / "password")
        asyncio.run(cluster.create(data, _SUPERUSER, home / "password"))
        (data / "postgresql.conf").write_text(cluster.configuration(data, home, settings))
        (data / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        with _running(data, home):
            yield DatabaseUrl(_SUPERUSER, password, str(home), DEFAULT_PORT, "postgres")


@contextmanager
def _running(data: Path, home: Path) -> Iterator[None]:
    command = Command(
        name="postgres",
        argv=(str(postgres_binaries() / "postgres"), "-D", str(data)),
        env=clean_env(LC_ALL="C"),
        death_signal=signal.SIGQUIT,
        ordinary_user=True,
    )
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command.launcher(_INHERITED_STDERR), env=command.env, stderr=log, start_new_session=True
        )
    try:
        _wait_until_it_answers(server, home)
        yield
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown, whoever is still connected
        server.wait(_DEADLINE)


def _wait_until_it_answers(server: "subprocess.Popen[bytes]", home: Path) -> None:
    ready = [str(postgres_binaries() / "pg_isready"), "--quiet", f"--host={home}"]
    deadline = time.monotonic() + _DEADLINE
    while subprocess.run(ready, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start: {(home / 'log').read_text()[-2000:]}")
        time.sleep(0.02)
