"""`tieline token`: what people and scripts prove themselves with."""

from __future__ import annotations

import argparse

from cli.client import Client, client, need_tenant
from cli.options import add_paging
from cli.output import show, show_list
from cli.roles import OF_PLATFORM, read_roles, write_roles
from tieline.credentials.v1 import tokens_pb2_grpc
from tieline.credentials.v1.tokens_pb2 import (
    ApiToken,
    CreateApiTokenRequest,
    CreatePlatformTokenRequest,
    ListApiTokensRequest,
    ListPlatformTokensRequest,
    RevokeApiTokenRequest,
    RevokePlatformTokenRequest,
)


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a token; it is shown this once")
    create.add_argument("--role", action="append", default=[], choices=OF_PLATFORM, help="may be given again")
    create.add_argument("--title", default="", help="what it is for")
    create.add_argument("--user", default="", metavar="users/ID", help="whom it stands for (default: you)")
    _add_platform(create)
    listing = actions.add_parser("list", help="show all, without the tokens themselves")
    _add_platform(listing)
    add_paging(listing)
    revoke = actions.add_parser("revoke", help="end a token")
    revoke.add_argument("name", help="as `list` shows it: tenants/T/apiTokens/ID or apiTokens/ID")


def _add_platform(action: argparse.ArgumentParser) -> None:
    action.add_argument("--platform", action="store_true", help="of the platform, and of no tenant")


async def token(options: argparse.Namespace) -> None:
    parent = "" if options.action == "revoke" or options.platform else need_tenant(options)
    async with client(options) as installation:
        await _ACTIONS[options.action](options, parent, installation)


async def _create(options: argparse.Namespace, parent: str, installation: Client) -> None:
    stub = tokens_pb2_grpc.TokenServiceStub(installation.credentials)
    wanted = ApiToken(title=options.title, principal=options.user, roles=read_roles(options.role))
    if parent:
        made = await stub.CreateApiToken(CreateApiTokenRequest(parent=parent, api_token=wanted))
        show(options, made, made.secret)
    else:
        of_platform = await stub.CreatePlatformToken(CreatePlatformTokenRequest(api_token=wanted))
        show(options, of_platform, of_platform.secret)


async def _list(options: argparse.Namespace, parent: str, installation: Client) -> None:
    stub = tokens_pb2_grpc.TokenServiceStub(installation.credentials)
    size, token = options.limit, options.page_token
    if parent:
        request = ListApiTokensRequest(parent=parent, page_size=size, page_token=token)
        page = await stub.ListApiTokens(request)
        show_list(options, page.api_tokens, map(_line, page.api_tokens), page.next_page_token)
    else:
        everywhere = await stub.ListPlatformTokens(
            ListPlatformTokensRequest(page_size=size, page_token=token)
        )
        lines = map(_line, everywhere.api_tokens)
        show_list(options, everywhere.api_tokens, lines, everywhere.next_page_token)


async def _revoke(options: argparse.Namespace, _: str, installation: Client) -> None:
    stub = tokens_pb2_grpc.TokenServiceStub(installation.credentials)
    if options.name.startswith("tenants/"):
        ended = await stub.RevokeApiToken(RevokeApiTokenRequest(name=options.name))
    else:
        ended = await stub.RevokePlatformToken(RevokePlatformTokenRequest(name=options.name))
    show(options, ended, f"revoked {ended.name}")


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke}


def _line(one: ApiToken) -> str:
    if one.HasField("revoke_time"):
        until = f"revoked {one.revoke_time.ToDatetime():%Y-%m-%d}"
    elif one.HasField("expire_time"):
        until = f"until {one.expire_time.ToDatetime():%Y-%m-%d}"
    else:
        until = "without an end"
    used = (
        f"used {one.last_used_time.ToDatetime():%Y-%m-%d}" if one.HasField("last_used_time") else "never used"
    )
    who = f"{one.hint}…  {one.principal}  {write_roles(one.roles)}"
    return f"{one.name}  {who}  {until}, {used}  {one.title}".rstrip()
