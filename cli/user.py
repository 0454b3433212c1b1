"""`tieline user`: the people who may sign on."""

from __future__ import annotations

import argparse
import uuid

from google.protobuf.field_mask_pb2 import FieldMask

from cli.client import client
from cli.options import add_paging
from cli.output import show, show_list
from cli.roles import OF_PLATFORM, read_roles, write_roles
from tieline.credentials.v1 import identities_pb2_grpc
from tieline.credentials.v1.identities_pb2 import (
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    UpdateUserRequest,
    User,
)


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="add a person")
    create.add_argument("title", help="the person's name")
    create.add_argument("--email", default="", help="where notices go")
    create.add_argument(
        "--subject", default="", metavar="ISSUER|ID", help="who it is at the sign-on provider"
    )
    create.add_argument(
        "--platform-role", action="append", default=[], choices=OF_PLATFORM, help="in every tenant; rare"
    )
    add_paging(actions.add_parser("list", help="show all"))
    for action, what in (
        ("disable", "refuse a person's tokens, within a minute"),
        ("enable", "let a person in again"),
        ("delete", "remove a person with all memberships and tokens"),
    ):
        actions.add_parser(action, help=what).add_argument("user", help="users/ID")


async def user(options: argparse.Namespace) -> None:
    async with client(options) as installation:
        stub = identities_pb2_grpc.UserServiceStub(installation.credentials)
        if options.action == "create":
            wanted = User(
                title=options.title,
                email=options.email,
                subject=options.subject,
                platform_roles=read_roles(options.platform_role),
            )
            made = await stub.CreateUser(CreateUserRequest(user=wanted, request_id=str(uuid.uuid4())))
            show(options, made, made.name)
            return
        if options.action == "list":
            page = await stub.ListUsers(
                ListUsersRequest(page_size=options.limit, page_token=options.page_token)
            )
            show_list(options, page.users, map(_line, page.users), page.next_page_token)
            return
        found = await stub.GetUser(GetUserRequest(name=options.user))
        if options.action == "delete":
            await stub.DeleteUser(DeleteUserRequest(name=found.name, etag=found.etag))
            show(options, found, f"deleted {found.name}")
            return
        found.disabled = options.action == "disable"
        request = UpdateUserRequest(user=found, update_mask=FieldMask(paths=["disabled"]))
        show(options, await stub.UpdateUser(request), f"{options.action}d {found.name}")


def _line(one: User) -> str:
    state = "disabled" if one.disabled else "active"
    return f"{one.name}  {state:<8}  {one.title}  {one.email}  {write_roles(one.platform_roles)}".rstrip()
