"""An app: what is registered once at a provider, and shared by connections of many tenants."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from foundation.identity.names import tenant_of
from tieline.plugin.v1.manifest_pb2 import CredentialSlot, Manifest
from tieline.plugin.v1.webhook_pb2 import Routing, Webhook
from tieline.registry.v1.apps_pb2 import App as Message
from tieline.registry.v1.connections_pb2 import SlotBinding

_HELD = (CredentialSlot.HOLDER_APP, CredentialSlot.HOLDER_CONNECTION_OR_APP)


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    id: str
    instance: str
    """Another one for each app that ever had this id."""
    content: Message
    """Only what people say of it."""
    create_time: datetime
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Where each webhook arrives: the last part of its URL."""
    edition: int = 1

    @property
    def name(self) -> str:
        return f"apps/{self.id}"

    @property
    def plugin(self) -> str:
        return self.content.plugin.removeprefix("plugins/")

    @property
    def owner(self) -> str:
        return tenant_of(self.content.owner)

    @property
    def etag(self) -> str:
        return f"{self.instance}.{self.edition}"

    def binding(self, slot: str) -> SlotBinding | None:
        return next((one for one in self.content.credentials if one.slot == slot), None)


FindApp = Callable[[str], Awaitable[App | None]]
"""By its name."""


async def no_apps(_: str) -> App | None:
    """Where there are none."""
    return None


def may_hold(slot: CredentialSlot) -> bool:
    """Whether an app's credential may fill it."""
    return slot.holder in _HELD


def routed(manifest: Manifest) -> list[Webhook]:
    """Those that an endpoint shared by many accounts can receive."""
    return [webhook for webhook in manifest.webhooks if webhook.routing.account_key]


def signed_by_account(webhook: Webhook) -> bool:
    return webhook.routing.signer == Routing.SIGNER_ACCOUNT


def with_defaults(below: bytes, own: bytes) -> bytes:
    """A connection's settings over those of its app: member by member of the object, its own win."""
    defaults: dict[str, Any] = json.loads(below or b"{}")
    if not defaults:
        return own
    return json.dumps(defaults | json.loads(own or b"{}"), sort_keys=True, separators=(",", ":")).encode()
