"""`tieline tenant`: who there is."""

from __future__ import annotations

import argparse
import uuid

from cli.client import client
from cli.options import add_paging
from cli.output import show, show_list
from tieline.credentials.v1 import tenants_pb2_grpc
from tieline.credentials.v1.tenants_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    GetTenantRequest,
    ListTenantsRequest,
    ResumeTenantRequest,
    SuspendTenantRequest,
    Tenant,
)


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="add a tenant")
    create.add_argument("id", help="2 to 40 lower-case letters, digits and dashes; never reused")
    create.add_argument("--title", default="", help="for people")
    listing = actions.add_parser("list", help="show all")
    listing.add_argument("--deleted", action="store_true", help="deleted ones too")
    add_paging(listing)
    suspend = actions.add_parser("suspend", help="stop everything of a tenant, keep everything")
    suspend.add_argument("id")
    suspend.add_argument("--reason", default="", help="shown to whoever is refused by it")
    resume = actions.add_parser("resume", help="take a suspension back")
    resume.add_argument("id")
    delete = actions.add_parser("delete", help="destroy a tenant's keys, then its data; cannot be undone")
    delete.add_argument("id")
    delete.add_argument("--confirm", required=True, metavar="tenants/ID", help="the tenant's name once more")


async def tenant(options: argparse.Namespace) -> None:
    async with client(options) as installation:
        stub = tenants_pb2_grpc.TenantServiceStub(installation.credentials)
        if options.action == "list":
            page = await stub.ListTenants(
                ListTenantsRequest(
                    page_size=options.limit, page_token=options.page_token, show_deleted=options.deleted
                )
            )
            show_list(options, page.tenants, map(_line, page.tenants), page.next_page_token)
            return
        if options.action == "create":
            request = CreateTenantRequest(
                tenant_id=options.id, tenant=Tenant(title=options.title), request_id=str(uuid.uuid4())
            )
            changed = await stub.CreateTenant(request)
        elif options.action == "suspend":
            changed = await stub.SuspendTenant(
                SuspendTenantRequest(name=f"tenants/{options.id}", reason=options.reason)
            )
        elif options.action == "resume":
            changed = await stub.ResumeTenant(ResumeTenantRequest(name=f"tenants/{options.id}"))
        else:
            found = await stub.GetTenant(GetTenantRequest(name=f"tenants/{options.id}"))
            changed = await stub.DeleteTenant(
                DeleteTenantRequest(name=found.name, etag=found.etag, confirmation=options.confirm)
            )
        done = {"create": "created", "suspend": "suspended", "resume": "resumed", "delete": "deleted"}
        show(options, changed, f"{done[options.action]} {changed.name}")


def _line(one: Tenant) -> str:
    return f"{one.name:<40} {Tenant.State.Name(one.state)[6:].lower():<10} {one.title}"
