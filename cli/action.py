"""`tieline action`: what can be done at a provider, and having it done."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cli.client import Client, client, need_tenant
from cli.operation import ended, follow, show_operation, tell_waiting
from cli.options import span
from cli.output import show_list
from foundation.errors import Code, Problem
from tieline.plugin.v1.manifest_pb2 import Action
from tieline.registry.v1 import catalogue_pb2_grpc, connections_pb2_grpc, operations_pb2_grpc
from tieline.registry.v1.catalogue_pb2 import GetPluginVersionRequest, ListPluginVersionsRequest
from tieline.registry.v1.connections_pb2 import GetConnectionRequest
from tieline.registry.v1.operations_pb2 import Operation, SubmitOperationRequest

PAGE = 1000


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show what can be done")
    what = listing.add_mutually_exclusive_group(required=True)
    what.add_argument("--plugin", default="", metavar="NAME", help="by the newest version of this plugin")
    what.add_argument("--connection", default="", metavar="ID", help="through this connection")
    run = actions.add_parser("run", help="have something done, once, however long it takes")
    run.add_argument("connection", help="the connection's id")
    run.add_argument("what", help="the action; see `tieline action list`")
    run.add_argument("--arguments", default="", metavar="FILE", help="a JSON object; `-` reads stdin")
    run.add_argument(
        "--key", default="", metavar="KEY", help="the same key again is the same action, done once"
    )
    run.add_argument("--order", default="", metavar="KEY", help="after those with the same key here")
    run.add_argument("--cause", default="", metavar="ID", help="the event or rule that it serves")
    run.add_argument(
        "--start-within", type=span, metavar="SPAN", help="not begun by then: it fails (default 1d)"
    )
    run.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=True, help="until it has ended (default)"
    )
    run.add_argument("--validate-only", action="store_true", help="check everything, change nothing")


async def action(options: argparse.Namespace) -> int:
    if options.action == "run":
        need_tenant(options)
        arguments_ = _arguments(options.arguments)
        async with client(options) as installation:
            return await _run(installation, options, arguments_)
    if options.connection:
        need_tenant(options)
    async with client(options) as installation:
        found = await _actions(installation, options)
    show_list(options, found, map(_line, found))
    return 0


async def _run(installation: Client, options: argparse.Namespace, arguments_: bytes) -> int:
    parent = need_tenant(options)
    wanted = Operation(
        connection=f"{parent}/connections/{options.connection}",
        action=options.what,
        arguments=arguments_,
        idempotency_key=options.key,
        ordering_key=options.order,
        cause=options.cause,
    )
    if options.start_within is not None:
        wanted.start_deadline.GetCurrentTime()
        wanted.start_deadline.seconds += options.start_within.seconds
    stub = operations_pb2_grpc.OperationServiceStub(installation.registry)
    request = SubmitOperationRequest(parent=parent, operation=wanted, validate_only=options.validate_only)
    made = await stub.SubmitOperation(request)
    if not options.wait or options.validate_only:
        show_operation(options, made)
        return 0
    async for told in follow(stub, made.name):
        made = told
        tell_waiting(made)
    show_operation(options, made)
    return ended(made)


async def _actions(installation: Client, options: argparse.Namespace) -> list[Action]:
    catalogue = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    if options.connection:
        name = f"{need_tenant(options)}/connections/{options.connection}"
        stub = connections_pb2_grpc.ConnectionServiceStub(installation.registry)
        connection = await stub.GetConnection(GetConnectionRequest(name=name))
        if connection.resolved_version:
            version = f"{connection.plugin}/versions/{connection.resolved_version}"
            found = await catalogue.GetPluginVersion(GetPluginVersionRequest(name=version))
            return list(found.manifest.actions)
        plugin = connection.plugin
    else:
        plugin = f"plugins/{options.plugin.removeprefix('plugins/')}"
    request = ListPluginVersionsRequest(parent=plugin, page_size=PAGE)
    versions = (await catalogue.ListPluginVersions(request)).plugin_versions
    return list(versions[0].manifest.actions) if versions else []


def _arguments(path: str) -> bytes:
    if not path:
        return b""
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        document = json.loads(raw)
    except OSError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--arguments", why=f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(Code.INVALID_ARGUMENT, field="--arguments", why=f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise Problem(Code.INVALID_ARGUMENT, field="--arguments", why="it is not a JSON object")
    return raw


def _line(one: Action) -> str:
    kind = Action.Idempotency.Name(one.idempotency or Action.IDEMPOTENCY_NONE)
    word = kind.removeprefix("IDEMPOTENCY_").lower()
    schema = json.loads(one.input_schema or b"{}")
    required = set(schema.get("required", ()))
    takes = ", ".join(name if name in required else f"[{name}]" for name in schema.get("properties", {}))
    return f"{one.name:<28} {word:<10} {takes:<32} {one.description}".rstrip()
