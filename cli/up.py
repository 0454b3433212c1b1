"""`tieline up`: engines and services as children of this process, from the first line to the last.

Order: own the data directory, hold the ports, start the engines, bring the schemas up to date, start the
services side by side, say `ready`. Everything stops in the opposite order, whatever ended it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.fleet import MODULES, OnChange, Service, logins, names_root_key, secrets_of, supervise
from cli.installation import Installation
from cli.keys import unusable
from cli.logfile import LogFile
from cli.settings import UpSettings, up_settings
from foundation.engines.engine import Engine
from foundation.engines.errors import EngineError
from foundation.engines.external import external_nats, external_postgres
from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.errors import Code, Problem
from foundation.process.errors import NotReadyError, PortInUseError, ProcessError
from foundation.process.lock import OwnerLock
from foundation.process.ports import Port
from foundation.process.supervised import Report, State, Supervised
from foundation.process.supervision import Supervision
from foundation.settings import Address
from foundation.store.bootstrap import bootstrap, new_passwords
from foundation.store.errors import StoreError
from foundation.store.migrate import migrate
from foundation.store.schemas import SCHEMAS, Schema
from foundation.store.url import DatabaseUrl

STOP_WITHIN = 14.0
"""Of the 15 s that a stop may take."""


Databases = Mapping[str, Mapping[str, str]]
"""For each service, its settings that say where it logs in."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before the first process starts."""

    installation: Installation
    settings: UpSettings
    user_files: Sequence[Path]
    services: Sequence[Service]
    engines: Mapping[str, Engine]
    began: float

    @property
    def schemas(self) -> list[Schema]:
        return [schema.prefixed(self.settings.database_role_prefix) for schema in SCHEMAS]


def arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--http", type=_address, metavar="HOST:PORT", help="the HTTP edge (default 127.0.0.1:8080)"
    )
    verb.add_argument("--plugins", type=Path, nargs="+", metavar="DIR", help="directories with plugins")
    verb.add_argument("--config", type=Path, metavar="FILE", help="settings (default DATA/settings.toml)")


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    installation = Installation(options.data)
    settings, user_files = up_settings(options, installation.settings)
    with _told_in_a_sentence(), ExitStack() as stack:
        installation.prepare()
        stack.enter_context(OwnerLock(installation.data / "owner.lock", "tieline up"))
        installation.forget_addresses()
        installation.keys.ensure_tokens()
        services = _hold_ports(settings, installation, stack)
        engines = _choose_engines(settings, installation, stack)
        asyncio.run(_run(Plan(installation, settings, user_files, services, engines, began)))
    return 0


@contextmanager
def _told_in_a_sentence() -> Iterator[None]:
    try:
        yield
    except (EngineError, ProcessError) as error:
        raise unusable(error.sentence.rstrip(".") + ".") from error
    except StoreError as error:
        raise unusable(str(error).rstrip(".") + ".") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise unusable(f"{where}{error.strerror}.") from error


def _hold_ports(settings: UpSettings, installation: Installation, stack: ExitStack) -> list[Service]:
    """Every port is ours before anything starts, and stays ours between the lives of a service."""
    services = []
    for name in MODULES:
        log = LogFile(installation.logs / f"{name}.log")
        stack.callback(log.close)
        if name == "gateway":
            http, grpc = _gateway_port(settings), None
        else:
            http, grpc = Port(), stack.enter_context(Port())
        services.append(Service(name, stack.enter_context(http), grpc, log))
    return services


def _gateway_port(settings: UpSettings) -> Port:
    try:
        return Port(settings.http.host, settings.http.port)
    except PortInUseError as error:
        why = "another process listens there"
        raise Problem(
            Code.ADDRESS_IN_USE, address=settings.http, why=why, option="--http HOST:PORT"
        ) from error


def _choose_engines(settings: UpSettings, installation: Installation, stack: ExitStack) -> dict[str, Engine]:
    """Ours, unless the settings name others."""
    engines: dict[str, Engine] = {}
    for name, url, kind, foreign in (
        ("postgres", settings.database_url, Postgres, external_postgres),
        ("nats", settings.nats_url, Nats, external_nats),
    ):
        if url is not None:
            engines[name] = foreign(url.reveal())
            continue
        log = LogFile(installation.logs / f"{name}.log")
        stack.callback(log.close)
        engines[name] = kind(installation.data / name, sink=log, on_change=_teller(name, log.path))
    return engines


async def _run(plan: Plan) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with Supervision(within=STOP_WITHIN) as everything:
        starting = asyncio.create_task(_start(plan, everything), name="start")
        waiting = asyncio.create_task(told.wait(), name="wait for a signal")
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await waiting
        else:
            starting.cancel()
            await asyncio.wait({starting})
        plan.installation.forget_addresses()
        _say("stopping")
    _say("stopped")


async def _start(plan: Plan, everything: Supervision) -> None:
    await everything.start(*plan.engines.values())
    database = await _prepare_database(plan)
    parts = [
        supervise(
            service,
            plan.installation,
            _settings_of(service, plan, database),
            plan.user_files,
            _teller(service.name, service.log.path),
        )
        for service in plan.services
    ]
    try:
        await everything.start(*parts)
    except NotReadyError:
        _raise_own_words(parts)
        raise
    _publish(plan)
    seconds = time.monotonic() - plan.began
    _say(
        f"ready {_url(plan)} in {seconds:.1f} s (data in {plan.installation.data}; Ctrl-C stops)", sys.stdout
    )


def _raise_own_words(parts: Sequence[Supervised]) -> None:
    """A service that ends with 2 has said in one sentence what is wrong with its settings or its address."""
    for part in parts:
        if part.last and part.last.exit and part.last.exit.code == 2:
            raise unusable(part.last.tail.strip().rpartition("\n")[2])


async def _prepare_database(plan: Plan) -> Databases:
    """Roles, schemas and migrations; answers where each role of each schema logs in."""
    admin = DatabaseUrl.parse(plan.engines["postgres"].url)
    keys, schemas = plan.installation.keys, plan.schemas
    passwords = keys.passwords(lambda: new_passwords(schemas))
    # Our own PostgreSQL is nobody else's; in an external one there may be another installation's roles.
    await bootstrap(
        admin, passwords, schemas, installation=keys.installation_id() if plan.settings.database_url else None
    )
    await migrate(admin, schemas)
    return logins(admin, passwords, schemas)


def _settings_of(service: Service, plan: Plan, databases: Databases) -> dict[str, Any]:
    """What we decide for a service; everything else is the user's."""
    chosen: dict[str, Any] = {}
    peers = {other.name: other.grpc.address for other in plan.services if other.grpc}
    match service.name:
        case "credentials":
            chosen = {"public_url": _public_url(plan)}
        case "registry":
            plugins = [str(Path(directory).absolute()) for directory in plan.settings.plugins]
            chosen = {
                "plugins": plugins,
                "installation": str(plan.installation.data.absolute()),
                "environments": str(plan.installation.data.absolute() / "environments"),
                "authority_file": str(plan.installation.keys.directory.absolute() / "plugins-authority.pem"),
                "public_url": _public_url(plan),
                "credentials": peers["credentials"],
                "mapper": peers["mapper"],
            }
        case "mapper":
            chosen = {name: peers[name] for name in ("credentials", "registry")}
        case "gateway":
            chosen = peers | {"public_url": _public_url(plan)}
    told = secrets_of(service.name, plan.installation.keys, databases, plan.engines["nats"].url)
    if service.name == "credentials" and names_root_key(plan.user_files):
        del told["root_key_file"]
    return chosen | told


def _publish(plan: Plan) -> None:
    """Tell where everything is: first how each process can be asked, last the addresses people wait for."""
    installation = plan.installation
    processes = {
        service.name: {"http": service.http.address, "log": str(service.log.path)}
        for service in plan.services
    }
    installation.publish(installation.processes, {"pid": os.getpid(), "processes": processes})
    addresses = {service.name: service.grpc.address for service in plan.services if service.grpc}
    document = {"gateway": _url(plan), **addresses, "admin_token_file": str(installation.keys.admin_token)}
    installation.publish(installation.endpoints, document)


def _url(plan: Plan) -> str:
    return f"http://{plan.services[-1].http.address}"


def _public_url(plan: Plan) -> str:
    """Where providers and browsers reach the gateway: behind a proxy that is not where it listens."""
    return plan.settings.public_url or _url(plan)


def _teller(name: str, log: Path) -> OnChange:
    """Say what a person at the terminal wants to know: deaths and giving up, not each start."""

    def changed(state: State, report: Report | None) -> None:
        if state is State.WAITING and report:
            _say(f"{report.sentence}; starting it again")
        elif state is State.FAILED and report:
            _say(f"{name} keeps failing and is left alone: {report.sentence}; its log is {log}")

    return changed


def _say(text: str, stream: Any = None) -> None:
    """Tell whoever still listens: a closed terminal must end neither supervision nor an orderly stop."""
    with suppress(OSError):
        print(text, file=stream or sys.stderr, flush=True)
