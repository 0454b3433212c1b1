"""`tieline doctor`: what is wrong with this installation, and how to mend it.

Each examination is one function that looks at one thing and says what it found; none of them changes
anything, and none needs the others, so that a broken installation is described as far as it can be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.client import client
from cli.fleet import MODULES
from cli.installation import Installation
from cli.plugin import PAGE, problem_line, processes_of
from cli.settings import UpSettings, up_settings
from cli.status import look
from foundation.engines.binaries import nats_binary, postgres_binaries
from foundation.engines.errors import EngineError
from foundation.errors import Problem
from foundation.process.confined import unconfinable
from foundation.process.errors import ProcessError
from foundation.process.lock import holders
from foundation.process.ports import Port
from tieline.registry.v1 import catalogue_pb2_grpc
from tieline.registry.v1.catalogue_pb2 import (
    ListManifestProblemsRequest,
    ListPluginsRequest,
    ListPluginVersionsRequest,
)
from tieline.registry.v1.processes_pb2 import Process

LITTLE_SPACE = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    fine: bool
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    installation: Installation
    options: argparse.Namespace

    @property
    def owner(self) -> int | None:
        """The process that runs on this data directory."""
        lock = self.installation.data / "owner.lock"
        return next(holders(lock), None) if lock.exists() else None


Examination = Callable[[Patient], Iterator[Finding]]


def doctor(options: argparse.Namespace) -> int:
    options.config, options.http, options.plugins = None, None, None
    patient = Patient(Installation(options.data), options)
    findings = [finding for examine in EXAMINATIONS for finding in examine(patient)]
    if options.json:
        print(json.dumps({"items": [asdict(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            print(f"{'ok ' if finding.fine else 'BAD'} {finding.subject}: {finding.text}")
            if finding.remedy:
                print(f"    {finding.remedy}")
    return 0 if all(finding.fine for finding in findings) else 1


def python(_: Patient) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", fine=True, text=f"{version} at {sys.executable}")


def engines(patient: Patient) -> Iterator[Finding]:
    try:
        own, _ = up_settings(patient.options, patient.installation.settings)
    except Problem:  # which `settings` tells
        own = UpSettings()
    for name, find, variable, external in (
        ("postgres", postgres_binaries, "TIELINE_DATABASE_URL", own.database_url),
        ("nats", nats_binary, "TIELINE_NATS_URL", own.nats_url),
    ):
        if external is not None:
            yield Finding(name, fine=True, text="external, as the settings say")
            continue
        try:
            yield Finding(name, fine=True, text=f"embedded, from {find()}")
        except EngineError as error:
            remedy = f"Run `make install`, or name an external one in {variable}."
            yield Finding(name, fine=False, text=error.sentence, remedy=remedy)


def data(patient: Patient) -> Iterator[Finding]:
    directory = patient.installation.data
    if not directory.exists():
        parent = next(path for path in directory.parents if path.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding("data", fine=True, text=f"{directory} will be made by the first `tieline up`")
        else:
            yield Finding(
                "data",
                fine=False,
                text=f"{parent} is not writable",
                remedy="Name another directory with --data.",
            )
        return
    if not directory.is_dir() or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "data",
            fine=False,
            text=f"{directory} is no directory of ours to use",
            remedy="Mend its owner and mode (0700), or name another with --data.",
        )
        return
    free = shutil.disk_usage(directory).free
    yield Finding(
        "disk",
        fine=free >= LITTLE_SPACE,
        text=f"{free / 1024**3:.1f} GiB free at {directory}",
        remedy="" if free >= LITTLE_SPACE else "Make room: the engines stop when none is left.",
    )


def secrets(patient: Patient) -> Iterator[Finding]:
    keys = patient.installation.keys.directory
    for path in [keys, *sorted(keys.glob("*"))] if keys.is_dir() else ():
        if path.stat().st_mode & 0o077:
            yield Finding(
                "keys",
                fine=False,
                text=f"{path} can be read by others",
                remedy=f"Run `chmod go= {path}`; if others could log in here, replace what it holds.",
            )


def settings(patient: Patient) -> Iterator[Finding]:
    """The user's file, read by `up` and by every service exactly as they would read it."""
    try:
        own, files = up_settings(patient.options, patient.installation.settings)
    except Problem as problem:
        yield Finding("settings", fine=False, text=problem.sentence, remedy=problem.remedy)
        return
    for name in MODULES if files else ():
        yield from _check_settings(patient.installation, name, files)
    where = ", ".join(map(str, files)) or "defaults only"
    yield Finding("settings", fine=True, text=where)
    if patient.owner is None:
        try:
            Port(own.http.host, own.http.port).close()
        except ProcessError as error:
            yield Finding(
                "http", fine=False, text=error.sentence, remedy="Choose another with --http HOST:PORT."
            )


def _check_settings(installation: Installation, name: str, files: list[Path]) -> Iterator[Finding]:
    own = installation.run / f"{name}.toml"
    if not own.exists():
        return
    arguments = [part for file in (*files, own) for part in ("--config", str(file))]
    check = subprocess.run(
        [sys.executable, "-m", MODULES[name], "--check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if check.returncode:
        yield Finding(f"settings of {name}", fine=False, text=check.stderr.strip())


def processes(patient: Patient) -> Iterator[Finding]:
    if patient.owner is None:
        yield Finding("processes", fine=True, text="nothing runs; `tieline up` starts it")
        return
    yield Finding("processes", fine=True, text=f"`tieline up` runs as process {patient.owner}")
    try:
        found = asyncio.run(look(patient.installation.endpoints))
    except Problem as problem:
        remedy = "It is starting, or stopping; look again in a moment."
        yield Finding("processes", fine=False, text=problem.sentence, remedy=remedy)
        return
    for process in found:
        text = "; ".join([process.state, *process.troubles])
        remedy = "" if process.answer.ready else f"Its log is {process.log}."
        yield Finding(process.name, fine=process.answer.ready, text=text, remedy=remedy)


def confinement(_: Patient) -> Iterator[Finding]:
    """Not a fault: where it cannot be had, plugins run without it, and each says so."""
    if why := asyncio.run(unconfinable()):
        remedy = "Plugins run as processes of their own, without walls. docs/plugins.md says what walls take."
        yield Finding("confinement", fine=True, text=why, remedy=remedy)
    else:
        yield Finding("confinement", fine=True, text="plugins can be kept in namespaces of their own")


def plugins(patient: Patient) -> Iterator[Finding]:
    """What is refused, and what is in trouble; nothing is said where nothing runs."""
    if patient.owner is None:
        return
    try:
        yield from asyncio.run(_plugins(patient.options))
    except Problem as problem:
        yield Finding("plugins", fine=False, text=problem.sentence, remedy=problem.remedy)


async def _plugins(options: argparse.Namespace) -> list[Finding]:
    async with client(options) as installation:
        catalogue = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
        refused = await catalogue.ListManifestProblems(ListManifestProblemsRequest(page_size=PAGE))
        plugins = await catalogue.ListPlugins(ListPluginsRequest(page_size=PAGE))
        versions = [
            await catalogue.ListPluginVersions(ListPluginVersionsRequest(parent=one.name, page_size=PAGE))
            for one in plugins.plugins
        ]
        running = await processes_of(installation, "plugins/-")
    found = [
        Finding(
            "plugin",
            fine=False,
            text=problem_line(problem),
            remedy="Mend that file; it is read again at once.",
        )
        for problem in refused.manifest_problems
    ]
    for version in (version for page in versions for version in page.plugin_versions):
        if version.HasField("failure"):
            _, name, _, number = version.name.split("/")
            remedy = "It is tried again by itself, and at once by `tieline plugin rescan`."
            text = version.failure.message
            found.append(Finding(f"plugin {name} {number}", fine=False, text=text, remedy=remedy))
    for process in running:
        fine = process.state in (Process.STATE_READY, Process.STATE_STARTING, Process.STATE_DRAINING)
        name = process.name.split("/")[1]
        remedy = "" if fine else f"`tieline plugin show {name}` tells how it died."
        found.append(Finding(f"plugin {name}", fine=fine, text=process.explanation, remedy=remedy))
    return found


EXAMINATIONS: tuple[Examination, ...] = (
    python,
    engines,
    confinement,
    data,
    secrets,
    settings,
    processes,
    plugins,
)
