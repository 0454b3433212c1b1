"""What a connection's plugin says that it can do: anything else is refused before a plugin is bothered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from tieline.plugin.v1.manifest_pb2 import Capability, Manifest

API_SLOT = "api"
"""What it calls with where the manifest does not say."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def the(what: str, declared: Iterable[N], name: str, manifest: Manifest) -> N:
    for one in declared:
        if one.name == name:
            return one
    why = f"{manifest.name} {manifest.version} has no {what} {name[:64]!r}"
    raise CallFailed(failures.untouched(failures.unsupported(f"{what.upper()}_UNKNOWN", why)))


def demand(capability: Capability.ValueType, manifest: Manifest) -> None:
    if capability not in manifest.capabilities:
        name = Capability.Name(capability).removeprefix("CAPABILITY_").lower()
        why = f"{manifest.name} {manifest.version} does not say that it can {name}"
        raise CallFailed(failures.untouched(failures.unsupported("CAPABILITY_MISSING", why)))


def refused(reason: str, why: str) -> CallFailed:
    """The request itself cannot be; nobody was asked."""
    return CallFailed(failures.untouched(failures.invalid_input(reason, why)))
