"""Write docs/reference/ from the code it describes; with --check, fail where they differ.

A reference that is kept in step by hand is out of step. Everything here is read from what runs: settings
from their classes, errors from their catalogue, verbs from the parser, methods from the contract.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import Metric

import tieline
from cli.options import parser
from cli.settings import UpSettings
from cli.verbs import VERBS
from foundation.errors import CATALOGUE
from foundation.identity import describe_method
from foundation.settings import Settings
from foundation.telemetry import Metrics
from gateway.routing import RoutingMetrics
from gateway.settings import GatewaySettings
from services.credentials.renewal.measuring import RefreshMetrics
from services.credentials.settings import CredentialsSettings
from services.mapper.settings import MapperSettings
from services.registry.operations.measuring import OperationMetrics
from services.registry.schedules.measuring import PollMetrics
from services.registry.settings import RegistrySettings
from tieline.common.v1 import options_pb2 as contract

REFERENCE = Path(__file__).resolve().parent / "reference"
HEAD = "<!-- Written by `make fix` from the code; edit the code. -->\n\n"

PROCESSES: dict[str, type[Settings]] = {
    "up": UpSettings,
    "gateway": GatewaySettings,
    "credentials": CredentialsSettings,
    "registry": RegistrySettings,
    "mapper": MapperSettings,
}


def settings() -> Iterator[str]:
    yield "# Settings\n"
    yield (
        "A settings file is TOML with one section per process; `tieline up` reads `settings.toml` in its data\n"
        "directory, or the file `--config` names. The environment spells a setting\n"
        "`TIELINE_<PROCESS>_<SETTING>` and wins over files. Nothing unknown is accepted, except\n"
        "the variables that Kubernetes makes for a Service of that name (`TIELINE_MAPPER_PORT=tcp://…`).\n"
        "`python -m services.mapper --check` shows what a process would use, and where each value comes from.\n"
        "\nUnder `tieline up`, addresses between the services, database logins and the NATS address are chosen\n"
        "by `up` itself and win over the file; in the environment they are refused.\n"
    )
    for section, kind in PROCESSES.items():
        yield f"## `[{section}]`\n"
        yield "| setting | type | default | what it is |\n|---|---|---|---|"
        for field in msgspec.structs.fields(kind):
            default = "required" if field.required else f"`{_shown(field.default)}`"
            yield f"| `{field.name}` | {_type(_schema(field.type))} | {default} | {_description(field)} |"
        yield ""


def _schema(kind: Any) -> dict[str, Any]:
    # Our own two types, an address and a secret, are written as text.
    return msgspec.json.schema(kind, schema_hook=lambda _: {"type": "string"})


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    bounds = " ".join(
        f"{sign} {schema[key]:g}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema
    )
    name = {
        "string": "text",
        "array": "list of text",
        "number": "number",
        "integer": "whole number",
        "boolean": "yes or no",
    }
    return f"{name[schema['type']]} {bounds}".rstrip()


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    return "[]" if default == () else str(default)


def _description(field: msgspec.structs.FieldInfo) -> str:
    metas = getattr(field.type, "__metadata__", ())
    return next((meta.description for meta in metas if getattr(meta, "description", None)), "")


def errors() -> Iterator[str]:
    yield "# Errors\n"
    yield (
        "Every refusal of every process is one of these. Over gRPC the name travels as the reason of a\n"
        "`google.rpc.ErrorInfo` in the domain `tieline`, over HTTP as `title` of an `application/problem+json`.\n"
        "Numbers never change their meaning. Words in braces are filled in.\n"
    )
    yield "| number | name | gRPC | HTTP | what it says | what to do |\n|---|---|---|---|---|---|"
    for code, meaning in CATALOGUE.items():
        yield (
            f"| {int(code)} | `{code.name}` | `{meaning.grpc}` | {meaning.http} "
            f"| {meaning.sentence} | {meaning.remedy} |"
        )


def verbs() -> Iterator[str]:
    yield "# The `tieline` command\n"
    yield (
        "Exit 0: done. Exit 1: refused or failed. Exit 2: wrong usage, or an installation that cannot be used.\n"
        "`--data DIR` (default `.tieline`), `--tenant T` and `--json` may stand anywhere. `TIELINE_TOKEN` is a token\n"
        "to use in place of the administrator's, `TIELINE_ENDPOINTS` names the\n"
        "`endpoints.json` of an installation elsewhere.\n"
    )
    whole = parser(VERBS)
    subparsers = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001 - argparse has no other way to list them
    yield from _describe("tieline", subparsers)


def _describe(above: str, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    helps = {action.dest: action.help for action in subparsers._choices_actions}  # noqa: SLF001
    for name, verb in subparsers.choices.items():
        below = [action for action in verb._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
        yield f"{'##' if above == 'tieline' else '###'} `{above} {name}`\n"
        yield f"{verb.description or _sentence(helps[name])}\n"
        for action in verb._actions:  # noqa: SLF001
            if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):  # noqa: SLF001
                continue
            if action.dest in ("data", "tenant", "json"):
                continue  # said once, above
            shown = (
                action.option_strings[0] if action.option_strings else (action.metavar or action.dest.upper())
            )
            metavar = f" {action.metavar}" if action.option_strings and action.metavar else ""
            choices = f" {'|'.join(map(str, action.choices))}" if action.choices else ""
            dots = " …" if action.nargs == "+" else ""
            yield f"* `{shown}{metavar}{choices}{dots}`: {action.help}"
        yield ""
        for one in below:
            yield from _describe(f"{above} {name}", one)


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def methods() -> Iterator[str]:
    yield "# Methods\n"
    yield (
        "Every method of the contract, who may call it and whether a call may be repeated when its answer was\n"
        "lost. What each means stands with it in `protos/`. *Scope*: the tenant a request names, the whole\n"
        "platform, anybody with a token, anybody at all (public), or the peer at the other end of a private\n"
        "transport.\n"
    )
    for service in _services():
        yield f"## `{service.full_name}`\n"
        yield "| method | scope | roles | callers | repeat |\n|---|---|---|---|---|"
        for descriptor in service.methods:
            method = describe_method(descriptor)
            scope = contract.Scope.Name(method.scope).removeprefix("SCOPE_").lower()
            retry = contract.RetryClass.Name(method.retry).removeprefix("RETRY_CLASS_").lower()
            stream = " (stream)" if method.streams else ""
            yield (
                f"| `{descriptor.name}`{stream} | {scope} | {', '.join(sorted(method.roles)) or '-'} "
                f"| {', '.join(sorted(method.callers)) or 'any'} | {retry} |"
            )
        yield ""


def _services() -> Iterator[ServiceDescriptor]:
    """Every service of the generated stubs, in the order of its name."""
    found: dict[str, ServiceDescriptor] = {}
    for root in map(Path, tieline.__path__):
        for path in root.rglob("*_pb2.py"):
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            for service in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
                found[service.full_name] = service
    yield from (found[name] for name in sorted(found))


def metrics() -> Iterator[str]:
    yield "# Metrics\n"
    yield "Every process serves these at `/metrics`, beside those of its Python runtime;"
    yield "those of credentials are the credentials service's alone, those of operations and polls the registry's,"
    yield "those of deliveries the gateway's.\n"
    yield "| metric | type | what it counts |\n|---|---|---|"
    every = Metrics("any")
    RefreshMetrics(every.registry)
    OperationMetrics(every.registry)
    PollMetrics(every.registry)
    RoutingMetrics(every.registry)
    collected: list[Metric] = list(every.registry.collect())
    for metric in sorted(collected, key=lambda metric: metric.name):
        if metric.name.startswith("tieline_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            yield f"| `{name}` | {metric.type} | {metric.documentation} |"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "settings.md": settings,
    "errors.md": errors,
    "cli.md": verbs,
    "methods.md": methods,
    "metrics.md": metrics,
}


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale = []
    REFERENCE.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        text = HEAD + "\n".join(write()).rstrip() + "\n"
        page = REFERENCE / name
        if not page.exists() or page.read_text() != text:
            stale.append(name)
            if not check:
                page.write_text(text)
    if check and stale:
        sys.exit(f"docs/reference is out of step with the code: {', '.join(stale)}. Run `make fix`.")


if __name__ == "__main__":
    main()
