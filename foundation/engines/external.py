"""Engines that somebody else runs, named by a URL: we only look whether they answer, to us."""

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import nats.errors

from foundation.engines.engine import Engine
from foundation.engines.errors import UnreachableError
from foundation.engines.nats import look

_LOOK = 10.0  # seconds for the one look at the start

Look = Callable[[str], Awaitable[None]]


class External(Engine):
    """An engine with nothing to start or stop."""

    def __init__(self, name: str, url: str, setting: str, look: Look) -> None:
        self.name = name
        self._url = url
        self._setting = setting  # where the URL came from, for whoever has to mend it
        self._look = look

    @property
    def url(self) -> str:
        return self._url

    async def start(self) -> None:
        address, password = self._read()
        try:
            async with asyncio.timeout(_LOOK):
                await self._look(self._url)
        except TimeoutError:
            raise self._unusable(address, f"no answer within {_LOOK:g} s") from None
        except (
            OSError,
            ValueError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            nats.errors.Error,
        ) as error:
            why = str(error) or type(error).__name__
            raise self._unusable(address, why.replace(password, "***") if password else why) from None

    async def ready(self) -> None:
        """Its readiness is its owner's affair; clients reconnect."""

    async def stop(self, grace: float | None = None) -> None:
        """Nothing of ours is there."""

    def kill(self) -> None:
        """Nothing of ours is there."""

    def _read(self) -> tuple[str, str]:
        """Where it is, and the word that no sentence may hold."""
        try:
            where = urlsplit(self._url)
            port = f":{where.port}" if where.port else ""
        except ValueError:
            raise UnreachableError(f"{self._setting} is not a URL") from None
        if not where.scheme:
            raise UnreachableError(f"{self._setting} is not a URL")
        return f"{where.hostname or 'its socket'}{port}", where.password or ""

    def _unusable(self, address: str, why: str) -> UnreachableError:
        return UnreachableError(f"{self._setting}: the {self.name} at {address} is not usable: {why}")


def external_postgres(url: str) -> External:
    return External("PostgreSQL", url, "TIELINE_DATABASE_URL", _look_at_postgres)


def external_nats(url: str) -> External:
    return External("NATS", url, "TIELINE_NATS_URL", _look_at_nats)


_OLDEST_POSTGRES = 15


async def _look_at_postgres(url: str) -> None:
    connection: asyncpg.Connection = await asyncpg.connect(url)
    try:
        if connection.get_server_version().major < _OLDEST_POSTGRES:
            raise ValueError(f"it is older than PostgreSQL {_OLDEST_POSTGRES}")
    finally:
        await connection.close()


async def _look_at_nats(url: str) -> None:
    if not urlsplit(url).hostname:
        raise ValueError("it names no host")
    seen: list[Exception] = []

    async def remember(error: Exception) -> None:
        seen.append(error)

    try:
        await look(url, remember)
    except nats.errors.NoServersError:
        raise ValueError(str(seen[-1]) if seen else "it does not answer") from None
