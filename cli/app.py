"""`tieline app`: what is registered once at a provider and shared by many tenants."""

from __future__ import annotations

import argparse
import uuid

from cli.client import client
from cli.connection_lines import of_account
from cli.connection_wanted import add_settings, settings_of
from cli.options import add_paging
from cli.output import show, show_list
from foundation.errors import Code, Problem
from tieline.plugin.v1.webhook_pb2 import Routing
from tieline.registry.v1 import apps_pb2_grpc
from tieline.registry.v1.apps_pb2 import (
    App,
    ApproveAccountKeyRequest,
    CreateAppRequest,
    DeleteAppRequest,
    GetAppRequest,
    ListAppsRequest,
    UpdateAppRequest,
)
from tieline.registry.v1.connections_pb2 import SlotBinding

UNMATCHED = ("manifest", "refuse", "dead-letter", "discard")
CREDENTIAL = "a credential of the owner for a slot that the app holds, as in webhook=github-app-hook; in an update, all of them"


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser(
        "create", help="register one; the answer names the URL to enter at the provider"
    )
    create.add_argument("id", help="lower-case letters, digits and dashes")
    create.add_argument("--plugin", required=True, metavar="P", help="whose deliveries it receives")
    create.add_argument(
        "--owner",
        required=True,
        metavar="T",
        help="the tenant that owns its credentials, and gets what is unmatched",
    )
    update = actions.add_parser("update", help="change it; its URL stays")
    update.add_argument("id")
    update.add_argument("--etag", default="", help="only if it still is as then; left out: as it is now")
    for action in (create, update):
        action.add_argument("--title", help="for people")
        action.add_argument("--credential", action="append", default=[], metavar="SLOT=ID", help=CREDENTIAL)
        action.add_argument(
            "--unmatched", choices=UNMATCHED, help="what to do with an account that no connection has"
        )
        add_settings(action)
    actions.add_parser("show", help="show one").add_argument("id")
    add_paging(actions.add_parser("list", help="show all"))
    delete = actions.add_parser("delete", help="remove one that no connection uses")
    delete.add_argument("id")
    delete.add_argument("--etag", default="", help="only if it still is as then")
    approve = actions.add_parser(
        "approve", help="agree that an account is a tenant's: from then on it receives"
    )
    approve.add_argument("connection", help="the connection that names it, as in acme/github-main")
    approve.add_argument("account_key", metavar="ACCOUNT")


async def app(options: argparse.Namespace) -> None:
    async with client(options) as installation:
        stub = apps_pb2_grpc.AppServiceStub(installation.registry)
        match options.action:
            case "create":
                wanted = _given(options, f"tenants/{options.owner.removeprefix('tenants/')}")
                wanted.plugin = f"plugins/{options.plugin.removeprefix('plugins/')}"
                made = await stub.CreateApp(
                    CreateAppRequest(app_id=options.id, app=wanted, request_id=str(uuid.uuid4()))
                )
                show(options, made, _text(made))
            case "update":
                changed = await _update(stub, options)
                show(options, changed, _text(changed))
            case "show":
                one = await stub.GetApp(GetAppRequest(name=_name(options)))
                show(options, one, _text(one))
            case "list":
                page = await stub.ListApps(
                    ListAppsRequest(page_size=options.limit, page_token=options.page_token)
                )
                show_list(options, page.apps, map(_line, page.apps), page.next_page_token)
            case "delete":
                gone = await stub.DeleteApp(DeleteAppRequest(name=_name(options), etag=options.etag))
                show(options, gone, f"deleted {_name(options)}")
            case "approve":
                request = ApproveAccountKeyRequest(
                    connection=_connection(options.connection), account_key=options.account_key
                )
                approved = await stub.ApproveAccountKey(request)
                lines = [of_account(one, approved.app) for one in approved.account_keys]
                show(options, approved, "\n".join([approved.name, *(f"  {line}" for line in lines)]))


async def _update(stub: apps_pb2_grpc.AppServiceAsyncStub, options: argparse.Namespace) -> App:
    present = await stub.GetApp(GetAppRequest(name=_name(options)))
    wanted = _given(options, present.owner)
    wanted.name, wanted.etag = present.name, options.etag or present.etag
    request = UpdateAppRequest(app=wanted)
    for field, given in (
        ("title", options.title is not None),
        ("credentials", bool(options.credential)),
        ("unmatched", options.unmatched is not None),
        ("settings", bool(options.settings)),
    ):
        if given:
            request.update_mask.paths.append(field)
    if not request.update_mask.paths:
        why = "nothing is to be changed: name at least one option, as in --title"
        raise Problem(Code.INVALID_ARGUMENT, field="update", why=why)
    return await stub.UpdateApp(request)


def _given(options: argparse.Namespace, owner: str) -> App:
    return App(
        title=options.title or "",
        owner=owner,
        credentials=[_binding(text, owner) for text in options.credential],
        unmatched=_unmatched(options.unmatched or "manifest"),
        settings=settings_of(options),
    )


def _binding(text: str, owner: str) -> SlotBinding:
    slot, equals, id_ = text.partition("=")
    if not (slot and equals and id_):
        raise Problem(Code.INVALID_ARGUMENT, field="--credential", why=f"{text!r} is not SLOT=ID")
    place, _, entry = slot.partition("/")
    return SlotBinding(slot=place, entry=entry, credential=f"{owner}/credentials/{id_}")


def _unmatched(word: str) -> Routing.Unmatched.ValueType:
    if word == "manifest":
        return Routing.UNMATCHED_UNSPECIFIED
    return Routing.Unmatched.Value(f"UNMATCHED_{word.replace('-', '_').upper()}")


def _name(options: argparse.Namespace) -> str:
    return f"apps/{options.id.removeprefix('apps/')}"


def _connection(text: str) -> str:
    tenant, slash, id_ = text.removeprefix("tenants/").replace("/connections/", "/").partition("/")
    if not (tenant and slash and id_) or "/" in id_:
        why = f"{text!r} is not TENANT/CONNECTION, as in acme/github-main"
        raise Problem(Code.INVALID_ARGUMENT, field="connection", why=why)
    return f"tenants/{tenant}/connections/{id_}"


def _line(one: App) -> str:
    return f"{one.name:<40} {one.plugin:<24} {one.owner:<24} {one.title}".rstrip()


def _text(one: App) -> str:
    policy = Routing.Unmatched.Name(one.unmatched).removeprefix("UNMATCHED_").lower().replace("_", "-")
    unmatched = "as the manifest says" if policy == "unspecified" else policy
    lines = [_line(one), f"  unmatched: {unmatched}"]
    lines += [f"  {webhook}: {url}" for webhook, url in sorted(one.webhook_urls.items())]
    return "\n".join(lines)
