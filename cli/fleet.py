"""The four services as children of `tieline up`: what each is told, started with, and asked."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.ask import ask
from cli.installation import Installation
from cli.keys import SERVICE_ROLES, Keys
from cli.logfile import LogFile
from foundation.errors import Code, Problem
from foundation.process.child import Child
from foundation.process.command import Command, clean_env
from foundation.process.errors import LaunchError
from foundation.process.ports import Port
from foundation.process.private import write_private
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import Report, Rules, State, Supervised
from foundation.store.schemas import Schema
from foundation.store.url import DatabaseUrl

OnChange = Callable[[State, Report | None], None]

MODULES = {
    "credentials": "services.credentials",
    "registry": "services.registry",
    "mapper": "services.mapper",
    "gateway": "gateway",
}
"""In the order in which a person reads them; they start side by side."""

GRACE = 8.0
"""Seconds from SIGTERM to SIGKILL: longer than a drain, shorter than the 15 s that a stop may take."""


RULES = Rules(ready_within=60.0, policy=RestartPolicy(cap=30.0, crash_limit=None))
"""The platform's own services are never given up: nobody would be left to start them again."""


class Service:
    """One service: its ports, held for as long as we live so that a restart finds them free, and its log."""

    def __init__(self, name: str, http: Port, grpc: Port | None, log: LogFile) -> None:
        self.name = name
        self.http = http
        self.grpc = grpc
        self.log = log

    def own_settings(self) -> dict[str, Any]:
        addresses = {"http": self.http.address}
        return addresses | ({"listen": self.grpc.address} if self.grpc else {})

    async def ready(self) -> bool:
        return (await ask(self.http.host, self.http.number)).ready


def supervise(
    service: Service,
    installation: Installation,
    settings: Mapping[str, Any],
    user_files: Sequence[Path],
    on_change: OnChange,
) -> Supervised:
    """A supervised child with a settings file of its own, which nobody else may read."""
    chosen = {**service.own_settings(), **settings}
    _refuse_to_be_overruled(service.name, chosen)
    own_file, text = installation.run / f"{service.name}.toml", settings_text(service.name, chosen)
    command = command_of(service.name, [*user_files, own_file])

    async def launch() -> Child:
        # Each time: somebody may have tidied `run` away, and without its settings no service would come back.
        try:
            own_file.parent.mkdir(mode=0o700, exist_ok=True)
            write_private(own_file, text)
        except OSError as error:
            raise LaunchError(f"{own_file} cannot be written: {error.strerror}") from error
        return await Child.spawn(command, service.log)

    return Supervised(service.name, launch, service.ready, RULES, on_change=on_change)


def command_of(name: str, files: Sequence[Path]) -> Command:
    """How a service is run. Of our environment it sees what is harmless, and its own settings."""
    arguments = [part for file in files for part in ("--config", str(file))]
    return Command(
        name=name,
        argv=(sys.executable, "-m", MODULES[name], *arguments),
        env=clean_env(
            "PYTHONPATH", *_own_variables(name), *(_aws_variables() if name == "credentials" else ())
        ),
        grace=GRACE,
    )


def _refuse_to_be_overruled(name: str, chosen: Iterable[str]) -> None:
    """The environment wins over files, and a service elsewhere than where we look for it is never ready."""
    for setting in chosen:
        variable = f"TIELINE_{name.upper()}_{setting.upper()}"
        if variable in os.environ:
            why = "`tieline up` chooses this itself, so unset it"
            raise Problem(Code.SETTINGS_INVALID, where=variable, why=why)


def _own_variables(name: str) -> list[str]:
    """The settings that the environment holds for this service; it sees no other's."""
    return [variable for variable in os.environ if variable.startswith(f"TIELINE_{name.upper()}_")]


def _aws_variables() -> list[str]:
    """Who we are at AWS: for the service that may keep its root key there and assumes tenants' roles."""
    return [variable for variable in os.environ if variable.startswith("AWS_")]


def names_root_key(user_files: Iterable[Path]) -> bool:
    """Whether the user says where the root key is; then it is not the one among our keys."""
    settings = ("root_key_file", "root_key_kms")
    if any(f"TIELINE_CREDENTIALS_{setting.upper()}" in os.environ for setting in settings):
        return True
    sections = (tomllib.loads(file.read_text()).get("credentials", {}) for file in user_files)
    return any(setting in section for section in sections for setting in settings)


def settings_text(section: str, values: Mapping[str, Any]) -> str:
    """A settings file of one process."""
    # A JSON string, or a list of them, is written the same way in TOML.
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(
        ["# Written by `tieline`; what is changed here does not last.", f"[{section}]", *lines, ""]
    )


def logins(
    admin: DatabaseUrl, passwords: Mapping[str, str], schemas: Iterable[Schema]
) -> dict[str, dict[str, str]]:
    """For each service that keeps something in the database: its settings that say where it logs in."""
    found = {}
    for schema in schemas:
        roles = {"database_url": schema.service, "worker_database_url": schema.worker}
        found[schema.name] = {
            name: admin.login(role, passwords[role]).reveal() for name, role in roles.items()
        }
    return found


def secrets_of(
    service: str, keys: Keys, databases: Mapping[str, Mapping[str, str]], nats_url: str
) -> dict[str, str]:
    """What a service is told that nobody else may know, and where its keys lie; nobody gets more than it uses."""
    told = dict(databases.get(service, {}))
    if service == "credentials":
        told |= {"root_key_file": str(keys.root_key), "start_tokens": str(keys.start_tokens)}
    if service != "gateway":
        told["nats_url"] = nats_url
    if service in SERVICE_ROLES:
        told["token_file"] = str(keys.token_file(service))
    return told
