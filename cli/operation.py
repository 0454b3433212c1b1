"""`tieline operation`: what was asked to be done at providers, how it stands, and what a person may say about it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import document, harmless, one_line
from foundation.errors import Problem
from tieline.registry.v1.operations_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
    ListOperationsRequest,
    Operation,
    ResolveOperationRequest,
    RetryOperationRequest,
    WatchOperationRequest,
)
from tieline.registry.v1.operations_pb2_grpc import OperationServiceStub

if TYPE_CHECKING:
    from tieline.registry.v1.operations_pb2_grpc import OperationServiceAsyncStub

STATES = [name.removeprefix("STATE_").lower() for name in Operation.State.keys()[1:]]
DONE = {Operation.STATE_SUCCEEDED}
BAD = {Operation.STATE_FAILED, Operation.STATE_CANCELLED, Operation.STATE_DEAD_LETTERED}
RETRY_SECONDS = 0.5


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show the latest")
    listing.add_argument("--connection", default="", metavar="ID", help="only of this connection")
    listing.add_argument(
        "--state", action="append", default=[], choices=STATES, help="only these; may be given again"
    )
    add_paging(listing)

    def on_one(name: str, what: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = actions.add_parser(name, help=what)
        one.add_argument("id", help="the operation's id")
        return one

    on_one("show", "show one with all that is known of it")
    on_one("watch", "show one now and after each change, until it has ended or needs a person")
    on_one("cancel", "take back what has not begun")
    on_one("retry", "try once more what failed or was dead-lettered")
    resolve = on_one("resolve", "say what became of an ambiguous one")
    word = resolve.add_mutually_exclusive_group(required=True)
    word.add_argument("--applied", action="store_true", help="it had its effect")
    word.add_argument("--not-applied", action="store_true", help="it had none, and may be retried")
    resolve.add_argument("--reason", default="", metavar="TEXT", help="how that is known, for the audit")


async def operation(options: argparse.Namespace) -> int:
    tenant = need_tenant(options)
    async with client(options) as installation:
        stub = OperationServiceStub(installation.registry)
        if options.action == "list":
            await _list(stub, options, tenant)
            return 0
        name = f"{tenant}/operations/{options.id}"
        if options.action == "watch":
            return await _watch(stub, options, name)
        match options.action:
            case "show":
                found = await stub.GetOperation(GetOperationRequest(name=name))
            case "cancel":
                found = await stub.CancelOperation(CancelOperationRequest(name=name))
            case "retry":
                found = await stub.RetryOperation(RetryOperationRequest(name=name))
            case _:
                found = await stub.ResolveOperation(
                    ResolveOperationRequest(name=name, applied=options.applied, reason=options.reason)
                )
        show_operation(options, found)
    return 0


async def _list(stub: OperationServiceAsyncStub, options: argparse.Namespace, tenant: str) -> None:
    request = ListOperationsRequest(
        parent=tenant,
        page_size=options.limit,
        page_token=options.page_token,
        connection=f"{tenant}/connections/{options.connection}" if options.connection else "",
        states=[Operation.State.Value(f"STATE_{name.upper()}") for name in options.state],
    )
    page = await stub.ListOperations(request)
    if options.json:
        listed = [_document(one) for one in page.operations]
        print(json.dumps({"items": listed, "next_page_token": page.next_page_token}, indent=1))
        return
    for one in page.operations:
        print(_line(one))
    if page.next_page_token:
        print(f"more: --page-token {page.next_page_token}")


async def _watch(stub: OperationServiceAsyncStub, options: argparse.Namespace, name: str) -> int:
    code = 0
    async for told in follow(stub, name):
        print(json.dumps(_document(told)) if options.json else _line(told), flush=True)
        code = ended(told)
    return code


async def follow(stub: OperationServiceAsyncStub, name: str) -> AsyncIterator[Operation]:
    """Now and after each change, until it has ended or only a person can go on. A stream that was cut is resumed."""
    while True:
        try:
            async for told in stub.WatchOperation(WatchOperationRequest(name=name)):
                yield told.operation
                if _is_over(told.operation):
                    return
        except Problem as problem:
            if problem.meaning.grpc != "UNAVAILABLE":
                raise
        await asyncio.sleep(RETRY_SECONDS)


def ended(one: Operation) -> int:
    """The exit code: whether it is done."""
    return 1 if one.state in BAD or _needs_person(one) else 0


def show_operation(options: argparse.Namespace, one: Operation) -> None:
    print(json.dumps(_document(one), indent=1) if options.json else _text(one))


def tell_waiting(one: Operation) -> None:
    """To whoever waits for it at a terminal, and would not know why."""
    if one.HasField("failure") and one.state != Operation.STATE_RUNNING and not _is_over(one):
        print(harmless(one_line(_line(one) + f": {one.failure.message}")), file=sys.stderr, flush=True)


def _is_over(one: Operation) -> bool:
    return one.state in DONE | BAD or _needs_person(one)


def _needs_person(one: Operation) -> bool:
    return one.state == Operation.STATE_AMBIGUOUS and not one.HasField("next_attempt_time")


def _document(one: Operation) -> dict[str, Any]:
    """Arguments and output as the JSON that they are."""
    told = document(one)
    for name, raw in (("arguments", one.arguments), ("output", one.output)):
        if raw:
            told[name] = json.loads(raw)
    return told


def _state(one: Operation) -> str:
    return Operation.State.Name(one.state).removeprefix("STATE_").lower()


def _line(one: Operation) -> str:
    id_, connection = one.name.rpartition("/")[2], one.connection.rpartition("/")[2]
    why = f"  {one.failure.reason}" if one.HasField("failure") else ""
    return f"{id_}  {_moment(one.create_time)}  {_state(one):<13} {connection:<24} {one.action}{why}"


def _text(one: Operation) -> str:
    lines = [_line(one), f"  by {one.author}, key {one.idempotency_key}, attempts {one.attempts}"]
    if one.cause:
        lines.append(f"  because of {one.cause}")
    if one.ordering_key:
        lines.append(f"  in the order of {one.ordering_key}")
    if one.arguments not in {b"", b"{}"}:
        lines.append(f"  arguments {one.arguments.decode()}")
    if one.output:
        lines.append(f"  output {one.output.decode()}")
    lines += [f"  wrote {item.kind} {item.id} at version {item.version}" for item in one.written]
    if one.HasField("failure"):
        lines.append(f"  {one.failure.reason}: {one.failure.message}")
    if one.HasField("next_attempt_time"):
        lines.append(f"  next look at {_moment(one.next_attempt_time)}")
    if advice := _advice(one):
        lines.append(f"  {advice}")
    return "\n".join(lines)


def _advice(one: Operation) -> str:
    id_ = one.name.rpartition("/")[2]
    if _needs_person(one):
        return f"look at the provider, then `tieline operation resolve {id_} --applied` or `--not-applied`"
    if one.state in {Operation.STATE_FAILED, Operation.STATE_DEAD_LETTERED}:
        return f"once that is mended: `tieline operation retry {id_}`"
    return ""


def _moment(time: Timestamp) -> str:
    return time.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")
