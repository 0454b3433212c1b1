"""The four services in one event loop, on engines and settings as `tieline up` would choose them.

Everything between them is real (sockets, tokens, plugin processes, databases); only they are not processes.
That makes a scenario fast and lets a debugger see all of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.ask import Answer, ask
from cli.fleet import Service, settings_text
from cli.installation import Installation
from cli.settings import UpSettings
from cli.up import Plan, _hold_ports, _prepare_database, _publish, _settings_of
from foundation.engines.nats import Nats
from foundation.engines.testing import Served, fresh_database
from foundation.process.private import write_private
from foundation.settings import Address, load
from gateway import main as gateway
from gateway.settings import GatewaySettings
from services.credentials import main as credentials
from services.credentials.settings import CredentialsSettings
from services.mapper import main as mapper
from services.mapper.settings import MapperSettings
from services.registry import main as registry
from services.registry.settings import RegistrySettings

SERVE: dict[str, tuple[Any, Any]] = {
    "credentials": (CredentialsSettings, credentials.serve),
    "registry": (RegistrySettings, registry.serve),
    "mapper": (MapperSettings, mapper.serve),
    "gateway": (GatewaySettings, gateway.serve),
}


@dataclass(frozen=True)
class Elsewhere:
    """An engine that somebody else started."""

    name: str
    url: str


@dataclass
class Inside:
    data: Path

    @property
    def endpoints(self) -> dict[str, str]:
        document: dict[str, str] = json.loads((self.data / "run/endpoints.json").read_text())
        return document


@asynccontextmanager
async def inside(data: Path, engines: Served, *plugins: Path) -> AsyncIterator[Inside]:
    installation = Installation(data)
    installation.prepare()
    installation.keys.ensure_tokens()
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(ExitStack())
        up = UpSettings(http=Address("127.0.0.1", 0), plugins=tuple(map(str, plugins)))
        nats = await stack.enter_async_context(Nats(data / "nats"))
        database = await stack.enter_async_context(fresh_database(engines.postgres))
        services = _hold_ports(up, installation, ports)
        chosen: Any = {"postgres": Elsewhere("postgres", database), "nats": nats}
        plan = Plan(installation, up, (), services, chosen, 0.0)
        databases = await _prepare_database(plan)
        stop = asyncio.Event()
        tasks = [_serve(service, plan, databases, stop) for service in services]
        try:
            await _ready(services, tasks)
            _publish(plan)
            yield Inside(data)
        finally:
            stop.set()
            await asyncio.gather(*tasks)


def _serve(service: Service, plan: Plan, databases: Any, stop: asyncio.Event) -> asyncio.Task[None]:
    values = {**service.own_settings(), **_settings_of(service, plan, databases), "log_level": "error"}
    file = plan.installation.run / f"{service.name}.toml"
    write_private(file, settings_text(service.name, values))
    kind, serve = SERVE[service.name]
    return asyncio.create_task(serve(load(kind, service.name, [file], {}).settings, stop), name=service.name)


async def _ready(services: list[Service], tasks: list[asyncio.Task[None]]) -> None:
    for service in services:
        answer = Answer(0)
        try:
            async with asyncio.timeout(60):
                while not (answer := await ask(service.http.host, service.http.number)).ready:
                    for task in tasks:
                        if task.done():
                            await task
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{service.name} is not ready: {answer}") from None
