import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import psutil
import pytest
from nats.aio.client import Client
from nats.js.api import StorageType
from nats.js.errors import ServerError

from foundation.engines.errors import DataInUseError, StartError
from foundation.engines.nats import MAX_PAYLOAD, Nats, Store
from foundation.process.testing import gone, until


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    client = Client()
    try:
        await client.connect(url, allow_reconnect=False, error_cb=_ignore)
        yield client
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    pass


async def test_messages_outlive_the_server(directory: Path) -> None:
    async with Nats(directory / "nats") as server, connected(server.url) as client:
        stream = client.jetstream()
        await stream.add_stream(name="kept", subjects=["kept.>"], storage=StorageType.FILE)
        await stream.publish("kept.one", b"hello")
    async with Nats(directory / "nats") as server, connected(server.url) as client:
        assert (await client.jetstream().get_msg("kept", 1)).data == b"hello"


async def test_it_comes_back_on_the_same_port_with_what_it_acknowledged(directory: Path) -> None:
    async with Nats(directory / "nats") as server:
        url = server.url
        async with connected(url) as client:
            await client.jetstream().add_stream(name="kept", subjects=["kept"], storage=StorageType.FILE)
        for n in range(5):
            async with connected(url) as client:
                await client.jetstream().publish("kept", str(n).encode())
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: server.pid not in {None, pid})  # noqa: B023 - called at once
            await server.ready()
            assert server.url == url
            async with connected(url) as client:
                assert (await client.jetstream().stream_info("kept")).state.messages == n + 1
            server._supervised.restarts.forgive()  # five at once would wait longer each time


async def test_nobody_enters_without_the_password(directory: Path) -> None:
    async with Nats(directory / "nats") as server:
        address = server.url.rpartition("@")[2]
        for url in (f"nats://{address}", f"nats://tieline:wrong@{address}"):
            with pytest.raises(nats.errors.Error):
                async with connected(url):
                    pass


async def test_the_password_is_in_private_files_only(directory: Path) -> None:
    async with Nats(directory / "nats") as server:
        for name in ("password", "server.conf"):
            assert stat.S_IMODE((server.directory / name).stat().st_mode) == 0o600
        password = (server.directory / "password").read_text().strip()
        assert server.pid is not None
        process = psutil.Process(server.pid)
        assert password not in " ".join(process.cmdline())
        assert password not in json.dumps(process.environ())


async def test_it_listens_on_one_loopback_port_and_nothing_else(directory: Path) -> None:
    async with Nats(directory / "nats") as server:
        assert server.pid is not None
        listening = [
            connection.laddr for connection in psutil.Process(server.pid).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]  # fmt: skip
        assert [f"{address.ip}:{address.port}" for address in listening] == [server.url.rpartition("@")[2]]
        assert listening[0].ip == "127.0.0.1"


async def test_the_largest_message_passes_and_a_larger_one_does_not(directory: Path) -> None:
    async with Nats(directory / "nats") as server, connected(server.url) as client:
        stream = client.jetstream()
        await stream.add_stream(name="large", subjects=["large"], storage=StorageType.FILE)
        await stream.publish(
            "large", bytes(MAX_PAYLOAD - 1000), headers={"Nats-Msg-Id": "x" * 800}, timeout=60
        )
        with pytest.raises(nats.errors.MaxPayloadError):
            await client.publish("large", bytes(MAX_PAYLOAD + 1))


async def test_jetstream_has_limits(directory: Path) -> None:
    small = Store(memory=1024 * 1024, file=2 * 1024 * 1024)
    async with Nats(directory / "nats", store=small) as server, connected(server.url) as client:
        with pytest.raises(ServerError, match="insufficient storage"):
            await client.jetstream().add_stream(name="big", subjects=["big"], max_bytes=3 * 1024 * 1024)


@pytest.mark.parametrize("name", ["with spaces", 'it\'s \\ "quoted" $HOME', "ünïcode", "x" * 100])
async def test_any_path_will_do(directory: Path, name: str) -> None:
    async with Nats(directory / name) as server, connected(server.url) as client:
        await client.jetstream().add_stream(name="here", subjects=["here"], storage=StorageType.FILE)
    assert list((directory / name / "store").rglob("here"))


async def test_two_on_one_directory(directory: Path) -> None:
    async with Nats(directory / "nats"):
        with pytest.raises(DataInUseError, match="nats runs there already"):
            await Nats(directory / "nats").start()


async def test_two_side_by_side(directory: Path) -> None:
    async with Nats(directory / "ours") as ours, Nats(directory / "theirs") as theirs:
        assert ours.url.rpartition(":")[2] != theirs.url.rpartition(":")[2]


async def test_a_store_that_is_a_file_is_told(directory: Path) -> None:
    server = Nats(directory / "nats")
    (directory / "nats" / "store").mkdir(parents=True)
    (directory / "nats" / "store" / "jetstream").touch()
    with pytest.raises(StartError, match="Can't start JetStream: storage directory is not a directory"):
        await server.start()


async def test_stop_is_quick_and_leaves_nothing(directory: Path) -> None:
    server = Nats(directory / "nats")
    await server.start()
    pid = server.pid
    assert pid is not None
    async with connected(server.url), asyncio.timeout(5):
        await server.stop()
    await gone([pid], 0.0)
