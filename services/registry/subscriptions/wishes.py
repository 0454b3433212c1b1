"""Which webhooks a connection wants the platform to see to, by its manifest and by what it has."""

from __future__ import annotations

from collections.abc import Iterator

from services.registry.broker.declared import API_SLOT
from services.registry.connections.connection import Connection, State
from services.registry.connections.wanted import slot_named
from services.registry.subscriptions.subscription import Step, Subscription, Wish
from tieline.plugin.v1.manifest_pb2 import Action, Manifest

_ENDS = {State.DELETING}


def wishes(connection: Connection, manifest: Manifest, public_url: str) -> Iterator[tuple[str, Wish]]:
    """By webhook. None for one that a person has to subscribe to, or whose action nothing fills the slot of."""
    if connection.state in _ENDS or not connection.applied_revision:
        return
    actions = {action.name: action for action in manifest.actions}
    for webhook in manifest.webhooks:
        how, endpoint = webhook.provisioning, connection.endpoints.get(webhook.name)
        create = actions.get(how.create)
        if endpoint is None or create is None or not _filled(connection, manifest, create):
            continue
        yield (
            webhook.name,
            Wish(
                url=f"{public_url}/hooks/{endpoint}",
                create=how.create,
                renew=how.renew if how.renew in actions else "",
                remove=how.remove if how.remove in actions else "",
            ),
        )


def provisions(manifest: Manifest) -> bool:
    """Whether any of its webhooks can be subscribed to without a person."""
    return any(webhook.provisioning.create for webhook in manifest.webhooks)


def action_of(row: Subscription, manifest: Manifest) -> str:
    """What its step is done with; empty where a person does it."""
    for webhook in manifest.webhooks:
        if webhook.name == row.webhook:
            how = webhook.provisioning
            return {Step.CREATE: how.create, Step.RENEW: how.renew, Step.REMOVE: how.remove}.get(row.step, "")
    return ""


def _filled(connection: Connection, manifest: Manifest, action: Action) -> bool:
    slot = action.slot or API_SLOT
    filled = any(binding.slot == slot for binding in connection.wanted.credentials)
    return filled or slot_named(manifest, slot) is None
