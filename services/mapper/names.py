"""What the mapper calls things: rows by their bare id, the world by resource names."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid5

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from tieline.event.v1.content_pb2 import Category, Severity

PARTITIONS = 64
"""Shares the inbox is worked on in. Fixed: rows carry their number."""

_EVENTS = UUID("6f0d1c5e-6f0b-5d54-9f0e-2f6c2a1b7e10")


def partition_of(connection: str) -> int:
    """The same on every machine and in every version: order holds within a connection."""
    digest = hashlib.blake2s(connection.encode(), digest_size=4).digest()
    return int.from_bytes(digest) % PARTITIONS


def event_id(connection: str, external_key: str, ordinal: int) -> UUID:
    """The same thing told twice by one connection has the same id, whoever tells it and whenever."""
    return uuid5(uuid5(_EVENTS, connection), f"{external_key}\0{ordinal}")


def event_name(tenant: str, event: UUID) -> str:
    return f"tenants/{tenant}/events/{event}"


def delivery_name(tenant: str, delivery: UUID) -> str:
    return f"tenants/{tenant}/deliveries/{delivery}"


def subscription_name(tenant: str, subscription: str) -> str:
    return f"tenants/{tenant}/subscriptions/{subscription}"


def parse_uuid(pattern: str, name: str, what: str) -> tuple[str, UUID]:
    """Tenant and id. An id that no row can have is that of nothing, so the problem is NOT_FOUND."""
    tenant, last = parse(pattern, name, "name")
    try:
        return tenant, UUID(last)
    except ValueError:
        raise Problem(Code.NOT_FOUND, what=f"{what} {name}") from None


def subject_of(tenant: str, severity: int, category: int, type_: str) -> str:
    """Where on the bus an event is published; each tenant's events lie below subjects of its own."""
    level = Severity.Name(severity).removeprefix("SEVERITY_").lower()  # type: ignore[arg-type]  # a stored number
    kind = Category.Name(category).removeprefix("CATEGORY_").lower()  # type: ignore[arg-type]
    return f"events.{tenant}.{level}.{kind}.{type_}"


def subjects_of(tenant: str) -> str:
    return f"events.{tenant}.>"
