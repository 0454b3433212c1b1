"""`tieline status`: what runs, what is limited and why, and how every connection is."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cli.ask import Answer, ask
from cli.options import add_paging
from foundation.errors import Code, Problem
from foundation.settings import Address

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    http: Address
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    answer: Answer
    log: str | None

    @property
    def state(self) -> str:
        if self.answer.status == 0:
            return "not answering"
        return "ready" if self.answer.ready else "not ready"

    @property
    def troubles(self) -> list[str]:
        dependencies = self.answer.body.get("dependencies", {})
        return [f"{name}: {state}" for name, state in dependencies.items() if state != "ok"]


def arguments(verb: argparse.ArgumentParser) -> None:
    add_paging(verb)


def status(options: argparse.Namespace) -> int:
    processes = asyncio.run(look(options.endpoints))
    ready = all(process.answer.ready for process in processes)
    # Imported here: `client` itself reads the endpoints with what stands below.
    from cli.health import Health, ask_health, limits_of, lines  # noqa: PLC0415

    silent = [name for name in ("registry", "credentials") if not _answers(processes, name)]
    health = Health(f"{' and '.join(silent)} cannot be asked") if silent else asyncio.run(ask_health(options))
    limited = health.limited or limits_of(processes)
    if options.json:
        items = [
            {
                "name": process.name,
                "state": process.state,
                "dependencies": process.answer.body.get("dependencies", {}),
            }
            for process in processes
        ]
        print(
            json.dumps({"ready": ready, "items": items, "limitations": limited} | health.document(), indent=1)
        )
    else:
        for process in processes:
            print(f"{process.name:<12} {process.state:<14} {'; '.join(process.troubles)}".rstrip())
        for line in lines(health, limited):
            print(line)
    return 0 if ready else 1


def _answers(processes: Sequence[Process], name: str) -> bool:
    """Whether it may be asked; where only the gateway is known, that is found out by asking."""
    found = [process for process in processes if process.name == name]
    return not found or found[0].answer.status != 0


async def look(endpoints: Path) -> list[Process]:
    """Ask every process of the installation that these endpoints belong to."""
    targets = _targets(endpoints)
    answers = await asyncio.gather(*(ask(target.http.host, target.http.port) for target in targets))
    processes = [
        Process(target.name, answer, target.log) for target, answer in zip(targets, answers, strict=True)
    ]
    if not any(process.answer.status for process in processes):
        raise not_running(endpoints)
    return processes


def _targets(endpoints: Path) -> list[Target]:
    """Whom to ask: from another machine only the gateway, which knows who is ready."""
    gateway = read(endpoints, _gateway)
    beside = endpoints.with_name("processes.json")
    known = read(beside, _processes) if beside.exists() else []
    return list({target.name: target for target in [gateway, *known]}.values())


def _gateway(document: Any) -> Target:
    return Target("gateway", Address.parse(urlsplit(document["gateway"]).netloc))


def _processes(document: Any) -> list[Target]:
    return [
        Target(name, Address.parse(process["http"]), process.get("log"))
        for name, process in document["processes"].items()
    ]


def read(path: Path, understand: Callable[[Any], T]) -> T:
    try:
        return understand(json.loads(path.read_text()))
    except FileNotFoundError:
        raise not_running(path) from None
    except (OSError, ValueError) as error:
        raise Problem(Code.SETTINGS_INVALID, where=path, why=f"it cannot be read ({error})") from error
    except (AttributeError, KeyError, TypeError) as error:
        why = "it does not hold what `tieline up` writes there"
        raise Problem(Code.SETTINGS_INVALID, where=path, why=why) from error


def not_running(endpoints: Path) -> Problem:
    if os.environ.get("TIELINE_ENDPOINTS"):
        why = f"nothing answers where {endpoints} says, or it is not there"
        return Problem(Code.SETTINGS_INVALID, where="TIELINE_ENDPOINTS", why=why)
    return Problem(Code.NOT_RUNNING, path=endpoints.parent.parent)
