"""nats-server with JetStream as our child: one store, one loopback port, one password.

    directory/server.conf  with the password, so never an argument
    directory/password
    directory/store        JetStream's
    directory/in-use.lock  held by the server

**What a power cut may take.** PostgreSQL is the truth; JetStream distributes. A message that the server has
acknowledged survives `kill -9` at once (it is in the kernel's hands) and a power cut after `SYNC_WINDOW`
seconds. To sync each message would make the distribution as slow as the truth for no gain, provided that the
one who publishes keeps this rule: *what was published less than two windows ago is published again after the
engine restarts*, under the same message ids, which the stream's deduplication makes harmless.

**How large a message may be.** As large as JetStream can store: a record of its file store, headers and its
own few bytes included, ends at 32 MiB, so a message ends at 31. That is just below what a gRPC hop takes, so
whoever accepts an event looks at this bound too: what is larger could be stored and never distributed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nats.errors
from nats.aio.client import Client

from foundation.engines.binaries import nats_binary
from foundation.engines.embedded import Embedded, OnChange, unheard
from foundation.engines.errors import EngineError
from foundation.engines.files import password_in, private_directory, write_private
from foundation.process.command import Command, clean_env
from foundation.process.output import Sink, ignore
from foundation.process.ports import Port

USER = "tieline"
SYNC_WINDOW = 2  # seconds
MAX_PAYLOAD = 31 * 1024 * 1024
_CONNECT = 5.0  # seconds for one look whether it serves


@dataclass(frozen=True, slots=True)
class Store:
    """What JetStream may take, in bytes; each stream has its own limits below these."""

    memory: int = 64 * 1024 * 1024
    file: int = 10 * 1024 * 1024 * 1024


_DEFAULT_STORE = Store()


class Nats(Embedded):
    """A nats-server on `directory`, on the same free loopback port through all its lives."""

    name = "nats"

    def __init__(
        self,
        directory: Path,
        *,
        store: Store = _DEFAULT_STORE,
        sink: Sink = ignore,
        on_change: OnChange = unheard,
    ) -> None:
        super().__init__(directory, sink=sink, on_change=on_change)
        self._store = store
        self._port: Port | None = None
        self._password = ""

    @property
    def url(self) -> str:
        if self._port is None:
            raise EngineError("nats has no address before it is started")
        return f"nats://{USER}:{quote(self._password, safe='')}@{self._port.address}"

    async def start(self) -> None:
        nats_binary()
        await super().start()

    async def _prepare(self) -> None:
        self._password = password_in(self.directory / "password")
        if self._port is None:
            self._port = Port()
        private_directory(self.directory / "store")
        # The server's own language takes JSON, except for \u escapes.
        text = json.dumps(self._configuration(self._port), indent=2, ensure_ascii=False)
        write_private(self.directory / "server.conf", text)

    def _configuration(self, port: Port) -> Mapping[str, object]:
        return {
            "listen": port.address,
            "server_name": "tieline",
            "authorization": {"user": USER, "password": self._password},
            "jetstream": {
                "store_dir": str(self.directory / "store"),
                "max_memory_store": self._store.memory,
                "max_file_store": self._store.file,
                "sync_interval": f"{SYNC_WINDOW}s",
            },
            "max_payload": MAX_PAYLOAD,
            "logtime": False,
        }

    def _command(self, lock: int) -> Command:
        return Command(
            name=self.name,
            argv=(str(nats_binary()), "--config", str(self.directory / "server.conf")),
            env=clean_env(),
            grace=5.0,
            pass_fds=(lock,),
        )

    async def _serves(self) -> bool:
        return await answers(self.url, _CONNECT)

    def _close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None


async def answers(url: str, within: float) -> bool:
    """Whether JetStream answers there."""
    try:
        async with asyncio.timeout(within):
            await look(url, _unheard)
    except (OSError, TimeoutError, nats.errors.Error):
        return False
    return True


async def look(url: str, heard: Callable[[Exception], Awaitable[None]]) -> None:
    """Connect and ask JetStream something. The client waits 2 s between its own attempts unless told."""
    client = Client()
    try:
        await client.connect(
            url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0, error_cb=heard
        )
        await client.jetstream().account_info()
    finally:
        await client.close()


async def _unheard(_error: Exception) -> None:
    """The answer is no; why is in the server's own log."""
