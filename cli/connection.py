"""`tieline connection`: one tenant's use of one plugin."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from cli import connection_lines as lines
from cli.client import client, need_tenant
from cli.connection_file import read_many
from cli.connection_wanted import add_wanted, changes, wanted_of
from cli.options import add_paging
from cli.output import show, show_list
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1 import connections_pb2_grpc

AT_ONCE = 500
"""Connections in one request, by the contract."""

Stub: TypeAlias = "connections_pb2_grpc.ConnectionServiceAsyncStub"


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)

    def on_one(name: str, what: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=what)
        action.add_argument("id", help="the connection: lower-case letters, digits and dashes")
        return action

    create = on_one("create", "connect; the answer names the URL to enter at the provider")
    create.add_argument("--plugin", required=True, metavar="NAME", help="see `tieline plugin list`")
    add_wanted(create)
    update = on_one("update", "change what is named here; it serves once it was tried with the provider")
    add_wanted(update)
    update.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="POINTER=JSON",
        help='one setting, as in /retries=3 or /host="git.acme.example"; without a value it is removed',
    )
    _add_etag(update)
    on_one("show", "show one")
    add_paging(actions.add_parser("list", help="show all of a tenant"))
    add_paging(on_one("history", "who changed what, newest first"))
    rollback = on_one("rollback", "return to the content of an old revision, as a new one")
    rollback.add_argument("revision", type=int, help="its number, as `history` shows it")
    _add_etag(rollback)
    pause = on_one("pause", "stop polls and actions; what is delivered is kept and waits")
    pause.add_argument("--reason", default="", help="shown beside its state")
    on_one("resume", "go on where it stopped; what was refused is tried again")
    on_one("check", "ask plugin and provider now: credentials, permissions, health")
    delete = on_one("delete", "end it; its events stay")
    _add_etag(delete)
    apply = actions.add_parser("apply", help="create or change many, as a file has them")
    apply.add_argument("file", metavar="FILE", help="JSON, JSON lines or TOML (.toml); `-` reads stdin")
    apply.add_argument("--validate-only", action="store_true", help="check everything, change nothing")


async def connection(options: argparse.Namespace) -> int | None:
    parent = need_tenant(options)
    # Files are read before anything is asked: a slip in one needs no installation to be told.
    many = read_many(options.file, parent) if options.action == "apply" else []
    wanted = wanted_of(options, parent) if options.action in ("create", "update") else pb.Connection()
    async with client(options) as installation:
        stub = connections_pb2_grpc.ConnectionServiceStub(installation.registry)
        if options.action == "apply":
            return await _apply(stub, options, parent, many)
        if options.action == "list":
            await _list(stub, options, parent)
            return None
        wanted.name = f"{parent}/connections/{options.id}"
        return await _ACTIONS[options.action](stub, options, wanted)


async def _create(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    parent = wanted.name.rpartition("/connections/")[0]
    request = pb.CreateConnectionRequest(
        parent=parent,
        connection_id=options.id,
        connection=wanted,
        request_id=str(uuid.uuid4()),
        validate_only=options.validate_only,
    )
    _show(options, await stub.CreateConnection(request))


async def _update(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    present = await stub.GetConnection(pb.GetConnectionRequest(name=wanted.name))
    given, mask = changes(options, wanted, present)
    given.name, given.etag = wanted.name, options.etag or present.etag
    request = pb.UpdateConnectionRequest(
        connection=given, request_id=str(uuid.uuid4()), validate_only=options.validate_only
    )
    request.update_mask.paths.extend(mask)
    _show(options, await stub.UpdateConnection(request))


async def _show_one(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    _show(options, await stub.GetConnection(pb.GetConnectionRequest(name=wanted.name)))


async def _history(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    page = await stub.ListConnectionRevisions(
        pb.ListConnectionRevisionsRequest(
            parent=wanted.name, page_size=options.limit, page_token=options.page_token
        )
    )
    found = page.connection_revisions
    show_list(options, found, map(lines.of_revision, found), page.next_page_token)


async def _rollback(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    request = pb.RollbackConnectionRequest(
        name=wanted.name,
        revision=options.revision,
        etag=options.etag or await _etag(stub, wanted.name),
        request_id=str(uuid.uuid4()),
    )
    _show(options, await stub.RollbackConnection(request))


async def _pause(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    request = pb.PauseConnectionRequest(name=wanted.name, reason=options.reason)
    _show(options, await stub.PauseConnection(request))


async def _resume(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    _show(options, await stub.ResumeConnection(pb.ResumeConnectionRequest(name=wanted.name)))


async def _check(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> int:
    told = await stub.CheckConnection(pb.CheckConnectionRequest(name=wanted.name), timeout=120.0)
    show(options, told, "\n".join(map(lines.of_finding, told.findings)))
    return 0 if told.ok else 1


async def _delete(stub: Stub, options: argparse.Namespace, wanted: pb.Connection) -> None:
    request = pb.DeleteConnectionRequest(name=wanted.name, etag=options.etag)
    show(options, await stub.DeleteConnection(request), f"{wanted.name} is being ended, if it was there")


async def _list(stub: Stub, options: argparse.Namespace, parent: str) -> None:
    page = await stub.ListConnections(
        pb.ListConnectionsRequest(parent=parent, page_size=options.limit, page_token=options.page_token)
    )
    show_list(options, page.connections, map(lines.of_one, page.connections), page.next_page_token)


async def _apply(stub: Stub, options: argparse.Namespace, parent: str, many: list[pb.Connection]) -> int:
    told = pb.ApplyConnectionsResponse()
    for start in range(0, len(many), AT_ONCE):
        request = pb.ApplyConnectionsRequest(
            parent=parent,
            connections=many[start : start + AT_ONCE],
            request_id=str(uuid.uuid4()),
            validate_only=options.validate_only,
        )
        told.outcomes.extend((await stub.ApplyConnections(request, timeout=300.0)).outcomes)
    shown = map(lines.of_outcome, many, told.outcomes)
    show_list(options, told.outcomes, shown)
    return 1 if any(one.HasField("failure") for one in told.outcomes) else 0


async def _etag(stub: Stub, name: str) -> str:
    return (await stub.GetConnection(pb.GetConnectionRequest(name=name))).etag


def _add_etag(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--etag",
        type=_etag_given,
        help="only if it is still as that says, as `show --json` tells it",
    )


def _etag_given(text: str) -> str:
    if not text:  # an unset variable of a script, which wanted to be careful
        raise argparse.ArgumentTypeError("it is empty; leave the option out to change it however it is")
    return text


def _show(options: argparse.Namespace, one: pb.Connection) -> None:
    would = getattr(options, "validate_only", False)
    told = f"{one.name}: it would be accepted; nothing is changed" if would else lines.of_whole(one)
    show(options, one, told, lines.more(one))


_ACTIONS: Mapping[str, Callable[[Stub, argparse.Namespace, pb.Connection], Awaitable[int | None]]] = {
    "create": _create,
    "update": _update,
    "show": _show_one,
    "history": _history,
    "rollback": _rollback,
    "pause": _pause,
    "resume": _resume,
    "check": _check,
    "delete": _delete,
}
