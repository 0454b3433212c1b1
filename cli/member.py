"""`tieline member`: who may do what in a tenant."""

from __future__ import annotations

import argparse

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import show, show_list
from cli.roles import OF_TENANTS, read_roles, write_roles
from tieline.credentials.v1 import identities_pb2_grpc
from tieline.credentials.v1.identities_pb2 import (
    DeleteMembershipRequest,
    ListMembershipsRequest,
    Membership,
    SetMembershipRequest,
)


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    setting = actions.add_parser("set", help="make a person a member, or change what a member may do")
    setting.add_argument("user", help="users/ID")
    setting.add_argument(
        "--role", action="append", required=True, choices=OF_TENANTS, help="may be given again; replaces all"
    )
    add_paging(actions.add_parser("list", help="show all"))
    removal = actions.add_parser("remove", help="end a membership")
    removal.add_argument("user", help="users/ID")


async def member(options: argparse.Namespace) -> None:
    parent = need_tenant(options)
    async with client(options) as installation:
        stub = identities_pb2_grpc.UserServiceStub(installation.credentials)
        if options.action == "list":
            page = await stub.ListMemberships(
                ListMembershipsRequest(parent=parent, page_size=options.limit, page_token=options.page_token)
            )
            lines = (f"{one.user}  {write_roles(one.roles)}" for one in page.memberships)
            show_list(options, page.memberships, lines, page.next_page_token)
            return
        name = f"{parent}/memberships/{options.user.removeprefix('users/')}"
        if options.action == "remove":
            await stub.DeleteMembership(DeleteMembershipRequest(name=name))
            show(options, Membership(name=name), f"removed {name}")
            return
        wanted = Membership(name=name, roles=read_roles(options.role))
        stored = await stub.SetMembership(SetMembershipRequest(membership=wanted))
        show(options, stored, f"{stored.user} is {write_roles(stored.roles)} of {parent}")
