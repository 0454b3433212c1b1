"""Roles as they are written on the command line."""

from __future__ import annotations

from collections.abc import Iterable

from tieline.common.v1 import options_pb2 as contract

OF_TENANTS = ("tenant-admin", "operator", "viewer", "ingest")
OF_PLATFORM = ("platform-admin", *OF_TENANTS)


def read_roles(names: Iterable[str]) -> list[contract.Role.ValueType]:
    return [contract.Role.Value(f"ROLE_{name.upper().replace('-', '_')}") for name in names]


def write_roles(roles: Iterable[contract.Role.ValueType]) -> str:
    names = (contract.Role.Name(role).removeprefix("ROLE_") for role in roles)
    return ",".join(name.lower().replace("_", "-") for name in names)
