"""docker-compose.yml without Docker: the same commands with the same environment, as local processes.

What a container engine would give them is put in their place: names of containers become loopback addresses,
the volume `keys` a directory, and the two engines' images the test's own engines.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.ask import ask
from foundation.engines.nats import Nats
from foundation.engines.testing import Served, fresh_database
from foundation.process.child import Child
from foundation.process.command import Command, clean_env
from foundation.process.exits import Exit
from foundation.process.ports import Port
from tests.conftest import ROOT
from tests.scenarios.path import push, receiving

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = ("credentials", "registry", "mapper", "gateway")
ADDRESS = re.compile(r"\b(0\.0\.0\.0|credentials|registry|mapper|127\.0\.0\.1):(\d+)\b")


@dataclass
class Composed:
    data: Path
    endpoints: dict[str, str]
    children: dict[str, Child] = field(default_factory=dict)


def test_the_file_says_what_it_should() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"setup", "postgres", "nats", "migrate", *SERVICES}
    for name in SERVICES:
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert services[name]["volumes"] == ["keys:/keys:ro"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8080:8080"], "only the gateway, and only on this machine"
    text = (ROOT / "docker-compose.yml").read_text().lower()
    assert not re.search(r"password:|_token:|secret:", text.replace("postgres_password_file:", ""))


class Stand:
    """What a container engine would do, as far as this file asks for it."""

    def __init__(self, keys: Path, ports: dict[str, Port]) -> None:
        self.keys = keys
        self.ports = ports

    def local(self, text: str) -> str:
        def address(match: re.Match[str]) -> str:
            port = self.ports.get(match[2])
            return port.address if port else match[0]

        return ADDRESS.sub(address, text.replace("/keys", str(self.keys)))

    def command(self, name: str, *instead: tuple[str, str]) -> Command:
        service = COMPOSE["services"][name]
        text = service["command"]
        for old, new in instead:
            assert old in text
            text = text.replace(old, new)
        program, *arguments = shlex.split(self.local(text))
        start = {"python": (sys.executable,), "tieline": (sys.executable, "-m", "cli")}[program]
        environment = {key: self.local(str(value)) for key, value in service.get("environment", {}).items()}
        return Command(
            name=name, argv=(*start, *arguments), env=clean_env(**environment), cwd=Path("/"), grace=10
        )

    async def run(self, name: str, *instead: tuple[str, str]) -> Exit:
        child = await Child.spawn(self.command(name, *instead))
        exit_ = await child.wait()
        assert exit_.code == 0, child.tail
        return exit_


@pytest.fixture
async def composed(short_dir: Path, engines: Served) -> AsyncIterator[Composed]:
    keys = short_dir / "keys"
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(engines.postgres))
        nats = await stack.enter_async_context(Nats(short_dir / "nats"))
        for name, url in (("database", database), ("nats", nats.url)):
            (short_dir / f"{name}-url").write_text(url)
        numbers = ("7411", "7412", "7413", "7421", "7422", "7423", "8080")
        ports = {number: stack.enter_context(Port()) for number in numbers}
        stand = Stand(keys, ports)
        await stand.run(
            "setup",
            ("--postgres postgres:5432", f"--database-url-file {short_dir}/database-url"),
            ("--nats nats:4222", f"--nats-url-file {short_dir}/nats-url"),
        )
        await stand.run("migrate")
        composed = Composed(
            short_dir,
            {
                "gateway": f"http://{ports['8080'].address}",
                "credentials": ports["7411"].address,
                "registry": ports["7412"].address,
                "mapper": ports["7413"].address,
                "admin_token_file": str(keys / "admin-token"),
            },
        )
        for name in SERVICES:
            child = await Child.spawn(stand.command(name))
            stack.push_async_callback(child.stop)
            composed.children[name] = child
        await _ready(composed, ports["8080"])
        yield composed


async def _ready(composed: Composed, gateway: Port) -> None:
    async with asyncio.timeout(60):
        while not (await ask(gateway.host, gateway.number)).ready:
            for name, child in composed.children.items():
                assert child.running, f"{name}: {child.tail}"
            await asyncio.sleep(0.05)


async def test_what_compose_starts_carries_a_delivery(composed: Composed) -> None:
    async with receiving(composed) as acme, await acme.subscribe("ops") as ops:
        assert (await acme.send(push(1), "d-1")).status_code == 202
        [event] = await acme.stored(1)
        await ops.hear({event.id})


def test_the_image_holds_what_the_commands_need() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert "USER tieline" in dockerfile
    assert "requirements.lock" in dockerfile
