"""`tieline key`: the keys that protect credentials, and how they are changed."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from cli.client import client, need_tenant
from cli.output import show
from foundation.errors import Code, Problem
from tieline.credentials.v1 import keys_pb2_grpc
from tieline.credentials.v1.keys_pb2 import (
    GetRootKeyRequest,
    GetTenantKeyRequest,
    RetireTenantKeyVersionsRequest,
    RootKey,
    RotateRootKeyRequest,
    RotateTenantKeyRequest,
    TenantKey,
)

if TYPE_CHECKING:
    from tieline.credentials.v1.keys_pb2_grpc import KeyServiceAsyncStub

LOOK_SECONDS = 0.5


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    showing = actions.add_parser("show", help="show versions, fingerprints and how far a rotation is")
    rotate = actions.add_parser("rotate", help="begin a new version of a tenant's key, or the next root key")
    for action in (showing, rotate):
        action.add_argument("--root", action="store_true", help="the root key, and not a tenant's")
    rotate.add_argument("--wait", action="store_true", help="until everything is under the new one")
    rotate.add_argument(
        "--retire", action="store_true", help="and then destroy the old versions (of a tenant's key)"
    )


async def key(options: argparse.Namespace) -> None:
    name = "" if options.root else f"{need_tenant(options)}/key"
    if options.root and options.action == "rotate" and options.retire:
        why = "the previous root key is kept until the next rotation"
        raise Problem(Code.INVALID_ARGUMENT, field="--retire", why=why)
    async with client(options) as installation:
        stub: KeyServiceAsyncStub = keys_pb2_grpc.KeyServiceStub(installation.credentials)
        if options.root:
            root = await stub.GetRootKey(GetRootKeyRequest())
            if options.action == "rotate":
                root = await _rotate_root(options, stub, root)
            show(options, root, _root_lines(root))
        else:
            tenant = await stub.GetTenantKey(GetTenantKeyRequest(name=name))
            if options.action == "rotate":
                tenant = await _rotate_tenant(options, stub, tenant)
            show(options, tenant, _tenant_lines(tenant))


async def _rotate_tenant(options: argparse.Namespace, stub: KeyServiceAsyncStub, key: TenantKey) -> TenantKey:
    key = await stub.RotateTenantKey(RotateTenantKeyRequest(name=key.name, etag=key.etag))
    newest = key.versions[0].version
    while (options.wait or options.retire) and key.HasField("rewrap"):
        await asyncio.sleep(LOOK_SECONDS)
        key = await stub.GetTenantKey(GetTenantKeyRequest(name=key.name))
    if options.retire:
        request = RetireTenantKeyVersionsRequest(name=key.name, before_version=newest)
        key = await stub.RetireTenantKeyVersions(request)
    return key


async def _rotate_root(options: argparse.Namespace, stub: KeyServiceAsyncStub, key: RootKey) -> RootKey:
    key = await stub.RotateRootKey(RotateRootKeyRequest(staged_fingerprint=key.staged_fingerprint))
    while options.wait and key.tenants_done < key.tenants_total:
        await asyncio.sleep(LOOK_SECONDS)
        key = await stub.GetRootKey(GetRootKeyRequest())
    return key


def _tenant_lines(key: TenantKey) -> str:
    lines = [
        f"version {one.version:<4} {TenantKey.State.Name(one.state)[6:].lower():<10}"
        f" {one.data_keys} data keys, made {one.create_time.ToDatetime():%Y-%m-%d}"
        for one in key.versions
    ]
    if key.HasField("rewrap"):
        lines.append(f"rotation under way: {key.rewrap.done} of {key.rewrap.total} data keys")
    return "\n".join(lines)


def _root_lines(key: RootKey) -> str:
    lines = [f"current  {key.fingerprint} ({key.keeper})"]
    if key.staged_fingerprint:
        lines.append(f"next     {key.staged_fingerprint}")
    if key.previous_fingerprint:
        lines.append(f"previous {key.previous_fingerprint}")
    return "\n".join([*lines, f"{key.tenants_done} of {key.tenants_total} keys of tenants"])
