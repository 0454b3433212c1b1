"""Who a caller is, once a token has proved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """As the contract's PrincipalKind, in lower case."""

    USER = "user"
    SERVICE = "service"
    PLUGIN = "plugin"


class Role(StrEnum):
    """As the contract's Role, in lower case. Roles do not contain each other."""

    PLATFORM_ADMIN = "platform-admin"
    TENANT_ADMIN = "tenant-admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    INGEST = "ingest"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Principal:
    kind: Kind
    name: str
    platform_roles: frozenset[Role] = frozenset()
    tenant_roles: Mapping[str, frozenset[Role]] = field(default_factory=lambda: MappingProxyType({}))

    def roles_in(self, tenant: str) -> frozenset[Role]:
        """What the principal may do in a tenant: its membership there and what it may do everywhere."""
        return self.tenant_roles.get(tenant, frozenset()) | self.platform_roles
