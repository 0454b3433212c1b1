"""Roles as the contract numbers them, as tokens name them, and who may carry which."""

from __future__ import annotations

from collections.abc import Iterable

from foundation.errors import Code, Problem
from foundation.identity import Role
from tieline.common.v1 import options_pb2 as contract

OF_TENANTS = frozenset({Role.TENANT_ADMIN, Role.OPERATOR, Role.VIEWER, Role.INGEST})
"""What a membership or a token of a tenant may carry; the platform's own roles never."""

OF_PEOPLE = OF_TENANTS | {Role.PLATFORM_ADMIN}
"""What may be given at all. SERVICE is not given: a process is born with it."""


def read_roles(wanted: Iterable[int], allowed: frozenset[Role], field: str) -> list[str]:
    """The roles of a request, or the problem that says which there are. None at all is none."""
    given = list(wanted)
    known: dict[int, Role] = {contract.Role.Value(f"ROLE_{role.name}"): role for role in allowed}
    if not known.keys() >= set(given):
        why = f"it takes some of {', '.join(sorted(allowed))}"
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=why)
    return sorted({known[role].value for role in given})


def write_roles(roles: Iterable[str]) -> list[contract.Role.ValueType]:
    return [contract.Role.Value(f"ROLE_{Role(role).name}") for role in sorted(roles)]
