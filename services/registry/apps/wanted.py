"""What somebody wants of an app, held against the manifest: every fault with its place."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.errors import Code, Problem
from foundation.identity.names import parse, tenant_of
from services.registry.apps.app import may_hold, routed, signed_by_account
from services.registry.connections.grants import purposes
from services.registry.connections.wanted import canonical, slot_named
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.plugin.v1.webhook_pb2 import Routing
from tieline.registry.v1.apps_pb2 import App
from tieline.registry.v1.connections_pb2 import SlotBinding

TITLE = 256
CHANGEABLE = ("title", "credentials", "unmatched", "settings")
SETTABLE = ("plugin", "owner", *CHANGEABLE)


def settable(given: App) -> App:
    """The part of it that a caller may write."""
    if len(given.title) > TITLE:
        raise _bad("title", f"it is longer than {TITLE} characters")
    if given.unmatched not in Routing.Unmatched.values():
        raise _bad("unmatched", "there is no such policy")
    parse("tenants/*", given.owner, "app.owner")
    return App(
        title=given.title,
        plugin=given.plugin,
        owner=given.owner,
        credentials=given.credentials,
        unmatched=given.unmatched,
        settings=canonical(given.settings, "app.settings"),
    )


def merged(present: App, given: App, mask: Sequence[str]) -> App:
    """What is wanted now, with the fields that the mask names as they are given."""
    changeable = ", ".join(CHANGEABLE)
    if not mask:
        why = f"it is empty: name the fields to change, of {changeable}"
        raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
    for name in mask:
        if name not in CHANGEABLE:
            fixed = f"{name!r} never changes: make another app" if name in SETTABLE else ""
            why = fixed or f"{name[:100]!r} may not be changed; what may is {changeable}"
            raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
    wanted = App()
    wanted.CopyFrom(present)
    for name in mask:
        wanted.ClearField(name)  # type: ignore[arg-type]  # CHANGEABLE are its fields
    wanted.MergeFrom(App(**{name: getattr(given, name) for name in mask}))
    return settable(wanted)


def check(wanted: App, manifest: Manifest) -> None:
    """Raise the problem that names what cannot be; return if all of it fits."""
    webhooks = routed(manifest)
    if not webhooks:
        raise _bad("plugin", f"no webhook of {manifest.name} says how to tell accounts apart")
    seen: set[tuple[str, str]] = set()
    for index, binding in enumerate(wanted.credentials):
        _check_binding(binding, manifest, wanted.owner, f"credentials[{index}]")
        if (binding.slot, binding.entry) in seen:
            raise _bad(f"credentials[{index}]", "this entry is filled twice")
        seen.add((binding.slot, binding.entry))
    filled = {slot for slot, _ in seen}
    needed = {
        slot.name
        for webhook in webhooks
        if not signed_by_account(webhook) and (slot := slot_named(manifest, webhook.slot or "webhook"))
    }
    if missing := sorted(needed - filled):
        why = f"the slot {missing[0]} needs a credential: deliveries are verified with it"
        raise _bad("credentials", why)


def _check_binding(binding: SlotBinding, manifest: Manifest, owner: str, field: str) -> None:
    slot = slot_named(manifest, binding.slot)
    if slot is None:
        raise _bad(f"{field}.slot", f"{manifest.name} has no slot {binding.slot!r}")
    if not may_hold(slot):
        raise _bad(f"{field}.slot", "its credential is each connection's own")
    if PURPOSE_CALL in purposes(slot):
        why = "plugins call with it, and this version lends them credentials of connections only"
        raise _bad(f"{field}.slot", why)
    if (slot.max_entries > 1) != bool(binding.entry):
        why = "its entries have names" if slot.max_entries > 1 else "it has one entry, without a name"
        raise _bad(f"{field}.entry", why)
    parse("tenants/*/credentials/*", binding.credential, f"app.{field}.credential")
    if tenant_of(binding.credential) != tenant_of(owner):
        raise _bad(f"{field}.credential", f"it belongs to another tenant than the app's owner, {owner}")


def _bad(field: str, why: str) -> Problem:
    return Problem(Code.INVALID_ARGUMENT, field=f"app.{field}", why=why)
