"""A registry process killed with SIGKILL: its plugins go with it, and the next one serves as if nothing had been."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from foundation.engines.testing import Served
from foundation.process.testing import gone, until
from services.registry.settings import RegistrySettings
from tests.services.registry.conftest import ADMIN, MAPPER, Running, prepared, ready
from tests.services.registry.plugins import make_plugin
from tests.services.registry.test_connections import creation
from tieline.plugin.v1.transform_pb2 import TransformInput
from tieline.registry.v1 import broker_pb2, broker_pb2_grpc, connections_pb2_grpc

ROOT = Path(__file__).parents[3]


def start(settings: RegistrySettings, where: Path) -> subprocess.Popen[bytes]:
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    lines = [f"{name} = {json.dumps(_plain(value))}" for name, value in values.items() if value is not None]
    (where / "registry.toml").touch(0o600)
    (where / "registry.toml").write_text("\n".join(["[registry]", *lines, ""]))
    command = [sys.executable, "-m", "services.registry", "--config", str(where / "registry.toml")]
    return subprocess.Popen(command, cwd=ROOT)


def _plain(value: Any) -> Any:
    if hasattr(value, "reveal"):
        return value.reveal()
    return value if isinstance(value, (str, float, int, tuple)) else str(value)


async def transform(running: Running, connection: str) -> broker_pb2.TransformDataResponse.Result:
    group = broker_pb2.TransformDataRequest.Group(
        ref=broker_pb2.ConnectionRef(connection=connection),
        inputs=[TransformInput(input_id="1", webhook="events", payload=b'{"say": "hello"}')],
    )
    async with running.as_(MAPPER) as channel:
        stub: Any = broker_pb2_grpc.BrokerServiceStub(channel)
        answer = await stub.TransformData(broker_pb2.TransformDataRequest(groups=[group]))
        result: broker_pb2.TransformDataResponse.Result = answer.results[0]
        return result


async def test_a_killed_registry_takes_its_plugins_along_and_the_next_one_serves(
    engines: Served, tmp_path: Path, found: Callable[[str], None]
) -> None:
    make_plugin(tmp_path / "plugins", "one")
    async with prepared(engines, tmp_path) as running:
        first = start(running.settings, tmp_path)
        try:
            await ready(running)
            async with running.as_(ADMIN) as channel:
                made = await connections_pb2_grpc.ConnectionServiceStub(channel).CreateConnection(creation())
            assert not (await transform(running, made.name)).HasField("failure")
            plugins = [child.pid for child in psutil.Process(first.pid).children()]
            assert len(plugins) == 2
            os.kill(first.pid, signal.SIGKILL)
            killed = time.monotonic()
            await gone(plugins)
            dead = time.monotonic() - killed
        finally:
            first.kill()
            first.wait()
        second = start(running.settings, tmp_path)
        began = time.monotonic()
        try:
            await ready(running)
            result = await transform(running, made.name)
            assert result.outcomes[0].events.drafts[0].title == "hello"
            found(
                f"plugins gone after {dead:.2f} s; served again {time.monotonic() - began:.2f} s after the start"
            )
            second.terminate()
            plugins = [child.pid for child in psutil.Process(second.pid).children()]
            await asyncio.to_thread(second.wait, 30)
            assert second.returncode == 0
            await gone(plugins)
        finally:
            second.kill()
            second.wait()


async def test_a_plugin_killed_under_a_registry_is_back_soon(
    registry: Running, found: Callable[[str], None]
) -> None:
    async with registry.as_(ADMIN) as channel:
        github = creation()
        github.connection.plugin = "plugins/github"
        made = await connections_pb2_grpc.ConnectionServiceStub(channel).CreateConnection(github)
    await transform(registry, made.name)
    (plugin,) = _plugins()
    times = []
    for _ in range(2):  # a third one in a row is made to wait longer, and should be
        dead = plugin
        plugin.kill()
        began = time.monotonic()
        await until(partial(works, registry, made.name))
        times.append(time.monotonic() - began)
        await until(lambda dead=dead: [one.pid for one in _plugins() if one != dead])  # type: ignore[misc]
        (plugin,) = _plugins()
    found(f"served again after {max(times):.2f} s at most; a plugin's RSS is {_rss(plugin)} MB")


async def works(running: Running, connection: str) -> bool:
    return not (await transform(running, connection)).HasField("failure")


def _plugins() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            if child.cmdline()[-2:] == ["-m", "plugin"]:
                found.append(child)
    return found


def _rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss / 2**20)
