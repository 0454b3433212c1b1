"""PostgreSQL as our child: one cluster, one unix socket, one password, no network.

directory/cluster     the data, made once
directory/password    of the superuser `postgres`; services have roles of their own
directory/socket      where the socket's directory is, while there is one
directory/in-use.lock held by every process of the server
"""

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import asyncpg

from foundation.engines import cluster, sockets
from foundation.engines.binaries import postgres_binaries
from foundation.engines.embedded import Embedded, OnChange, unheard
from foundation.engines.errors import EngineError
from foundation.engines.files import password_in, write_private
from foundation.process.command import Command, clean_env
from foundation.process.output import Sink, ignore

SUPERUSER = "postgres"
_SOCKET = ".s.PGSQL.5432"
_CONNECT = 5.0  # seconds for one look whether it serves


class Postgres(Embedded):
    """A PostgreSQL server on `directory`, on the same socket through all its lives."""

    name = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, str] = cluster.NO_SETTINGS,
        sink: Sink = ignore,
        on_change: OnChange = unheard,
    ) -> None:
        super().__init__(directory, sink=sink, on_change=on_change)
        self._settings = settings
        self._socket_directory: Path | None = None
        self._password = ""

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """A URL for asyncpg, libpq and (as `postgresql+asyncpg:`) SQLAlchemy."""
        if self._socket_directory is None:
            raise EngineError("postgres has no address before it is started")
        login = f"{quote(user, safe='')}:{quote(password or self._password, safe='')}"
        return f"postgresql://{login}@/{quote(database, safe='')}?host={quote(str(self._socket_directory))}"

    async def start(self) -> None:
        postgres_binaries()
        await super().start()

    async def _prepare(self) -> None:
        self._password = password_in(self.directory / "password")
        if self._socket_directory is None:
            self._socket_directory = sockets.fresh_directory(self.directory / "socket", _SOCKET)
        sockets.keep_directory(self._socket_directory)
        data = self.directory / "cluster"
        if not data.exists():
            await cluster.create(data, SUPERUSER, self.directory / "password")
        cluster.check_version(data)
        # The tail lock is ours, so nobody serves this data: whoever these files name is a stranger.
        for stale in (data / "postmaster.pid", self._socket_directory / f"{_SOCKET}.lock"):
            stale.unlink(missing_ok=True)
        write_private(
            data / "postgresql.conf", cluster.configuration(data, self._socket_directory, self._settings)
        )
        write_private(data / "pg_hba.conf", "local all all scram-sha-256\n")

    def _command(self, lock: int) -> Command:
        return Command(
            name=self.name,
            argv=(str(postgres_binaries() / "postgres"), "-D", str(self.directory / "cluster")),
            env=clean_env(LC_ALL="C"),
            stop_signal=signal.SIGINT,  # a fast shutdown: sessions are ended, nothing needs recovery
            grace=8.0,
            # An immediate shutdown: bounded (it kills its own after 5 s), and what was committed is kept.
            death_signal=signal.SIGQUIT,
            ordinary_user=True,
            pass_fds=(lock,),
        )

    async def _serves(self) -> bool:
        if not cluster.says_ready(self.directory / "cluster"):
            return False  # a connection now would only leave a complaint in the log
        try:
            async with asyncio.timeout(_CONNECT):
                connection: asyncpg.Connection = await asyncpg.connect(self.url)
                await connection.close()
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
            return False
        except asyncpg.InvalidPasswordError as error:
            raise EngineError(
                f"{self.directory / 'password'} does not hold the password of this PostgreSQL"
            ) from error
        return True

    def _close(self) -> None:
        sockets.forget_directory(self.directory / "socket")
        self._socket_directory = None
