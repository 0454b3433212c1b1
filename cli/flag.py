"""`tieline flag`: features that are on for some."""

from __future__ import annotations

import argparse
import uuid

from cli.client import client
from cli.options import add_paging
from cli.output import show, show_list
from foundation.errors import Code, Problem
from tieline.registry.v1 import flags_pb2_grpc
from tieline.registry.v1.flags_pb2 import (
    CreateFlagRequest,
    DeleteFlagRequest,
    Flag,
    GetFlagRequest,
    ListFlagsRequest,
    UpdateFlagRequest,
)

RULE = (
    "whom it is on for: `PERCENT`, or with any of tenant=T, plugin=P, connection=T/C before it, as in"
    " tenant=acme,plugin=github,25; the first rule that fits decides"
)


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make one; without rules it is off for everybody")
    update = actions.add_parser("update", help="change what it says, or for whom it is on")
    for action in (create, update):
        action.add_argument("id", help="lower-case letters, digits and dashes")
        action.add_argument("--description", help="what it turns on")
        action.add_argument("--rule", action="append", metavar="RULE", help=RULE)
    update.add_argument("--no-rules", action="store_true", help="off for everybody")
    update.add_argument("--etag", default="", help="only if it still is as then; left out: as it is now")
    actions.add_parser("show", help="show one").add_argument("id")
    add_paging(actions.add_parser("list", help="show all"))
    delete = actions.add_parser("delete", help="off for everybody, and gone")
    delete.add_argument("id")
    delete.add_argument("--etag", default="", help="only if it still is as then")


async def flag(options: argparse.Namespace) -> None:
    rules = [_rule(text) for text in getattr(options, "rule", None) or ()]
    async with client(options) as installation:
        stub = flags_pb2_grpc.FlagServiceStub(installation.registry)
        match options.action:
            case "create":
                wanted = Flag(description=options.description or "", rules=rules)
                made = await stub.CreateFlag(
                    CreateFlagRequest(flag_id=options.id, flag=wanted, request_id=str(uuid.uuid4()))
                )
                show(options, made, _text(made))
            case "update":
                changed = await _update(stub, options, rules)
                show(options, changed, _text(changed))
            case "show":
                one = await stub.GetFlag(GetFlagRequest(name=f"flags/{options.id}"))
                show(options, one, _text(one))
            case "list":
                page = await stub.ListFlags(
                    ListFlagsRequest(page_size=options.limit, page_token=options.page_token)
                )
                show_list(options, page.flags, map(_line, page.flags), page.next_page_token)
            case "delete":
                await stub.DeleteFlag(DeleteFlagRequest(name=f"flags/{options.id}", etag=options.etag))
                print(f"flags/{options.id} is off for everybody" if not options.json else "{}")


async def _update(
    stub: flags_pb2_grpc.FlagServiceAsyncStub, options: argparse.Namespace, rules: list[Flag.Rule]
) -> Flag:
    name = f"flags/{options.id}"
    etag = options.etag or (await stub.GetFlag(GetFlagRequest(name=name))).etag
    request = UpdateFlagRequest(flag=Flag(name=name, etag=etag, rules=rules))
    if options.description is not None:
        request.flag.description = options.description
        request.update_mask.paths.append("description")
    if rules or options.no_rules:
        request.update_mask.paths.append("rules")
    return await stub.UpdateFlag(request)


def _rule(text: str) -> Flag.Rule:
    rule = Flag.Rule()
    *conditions, percentage = text.split(",")
    try:
        rule.percentage = int(percentage.removesuffix("%"))
    except ValueError:
        raise _bad(text, "it does not end with a percentage") from None
    for condition in conditions:
        name, _, value = condition.partition("=")
        tenant, slash, id_ = value.partition("/")
        match name:
            case "tenant" if value and not slash:
                rule.tenant = f"tenants/{value}"
            case "plugin" if value:
                rule.plugin = f"plugins/{value.removeprefix('plugins/')}"
            case "connection" if tenant and id_:
                rule.connection = f"tenants/{tenant}/connections/{id_}"
            case _:
                raise _bad(text, f"{condition!r} is not tenant=T, plugin=P or connection=T/C")
    return rule


def _bad(text: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field="--rule", why=f"{text!r}: {why}")


def _line(one: Flag) -> str:
    return f"{one.name:<40} {len(one.rules)} rule(s)  {one.description}".rstrip()


def _text(one: Flag) -> str:
    return "\n".join([_line(one), *(f"  {_said(rule)}" for rule in one.rules)])


def _said(rule: Flag.Rule) -> str:
    whom = [part for part in (rule.tenant, rule.plugin, rule.connection) if part]
    return f"{rule.percentage}% of {' and '.join(whom) or 'everybody'}"
