"""Grants: what lets a part of the platform use a credential for a connection. The vault decides, by the caller's right."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from grpc.aio import Channel

from foundation.errors import Code, Problem
from foundation.rpc.call import on_behalf_of_caller
from services.registry.connections.connection import Connection
from services.registry.connections.wanted import slot_named
from tieline.common.v1.credential_pb2 import CredentialKind
from tieline.credentials.v1 import credentials_pb2, credentials_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL, PURPOSE_WEBHOOK_VERIFY, Purpose
from tieline.plugin.v1.manifest_pb2 import CredentialChoice, CredentialSlot, Manifest
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1.connections_pb2 import SlotBinding

_NAMESPACE = uuid.UUID("0b1c6f2e-6f3a-4f5c-9a55-2f4d3c1e7a90")
GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A credential that somebody shall use: the gateway to verify, or a plugin to call."""

    subject: str
    """For which connection or app."""
    settings: bytes
    plugin: str
    binding: SlotBinding
    slot: CredentialSlot
    purpose: Purpose.ValueType

    @property
    def key(self) -> tuple[object, ...]:
        """What a grant for it depends on: where two agree, one grant does for both."""
        accounts = tuple(_account(self, choice) for choice in self.slot.choices)
        slot = self.slot.SerializeToString(deterministic=True)
        one = self.binding
        return one.slot, one.entry, one.credential, self.purpose, slot, accounts

    @property
    def request_id(self) -> str:
        """The same for the same wish, so that repeating a creation repeats no grant."""
        parts = [self.subject, self.binding.slot, self.binding.entry, self.binding.credential]
        if self.purpose != PURPOSE_WEBHOOK_VERIFY:
            parts.append(Purpose.Name(self.purpose))
        return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


class Grants(Protocol):
    async def give(self, wish: Wish) -> None:
        """Make the grant with the right of whoever asked us; raises the problem that the vault raised."""

    async def end(self, connection: str, kept: Iterable[SlotBinding] = (), *, settled: float = 0.0) -> None:
        """With our own right: the grants of a connection end, but for these and for what is newer than so many seconds."""

    async def end_of_app(self, app: str, owner: str, kept: Iterable[SlotBinding] = ()) -> None:
        """The same for the grants of an app, in the tenant that owns it."""


class VaultGrants:
    """We act for whoever asked us: the vault decides by their right, and its record names both."""

    def __init__(self, credentials: Channel) -> None:
        self._stub = credentials_pb2_grpc.CredentialServiceStub(credentials)

    async def give(self, wish: Wish) -> None:
        choice = await self._choice(wish)
        grant = credentials_pb2.Grant(
            slot=wish.binding.slot,
            entry=wish.binding.entry,
            purpose=wish.purpose,
            fields=choice.fields,
            account=_account(wish, choice),
        )
        if wish.subject.startswith("apps/"):
            grant.app = wish.subject
        else:
            grant.connection = wish.subject
        if wish.purpose == PURPOSE_CALL:
            grant.plugin = wish.plugin
        else:
            grant.service = GATEWAY
        request = credentials_pb2.CreateGrantRequest(
            parent=wish.binding.credential, grant=grant, request_id=wish.request_id
        )
        try:
            await self._stub.CreateGrant(request, metadata=on_behalf_of_caller())
        except Problem as problem:
            if problem.code is not Code.ALREADY_EXISTS:
                raise

    async def end(self, connection: str, kept: Iterable[SlotBinding] = (), *, settled: float = 0.0) -> None:
        request = credentials_pb2.EndGrantsRequest(connection=connection)
        request.settled.FromMilliseconds(round(settled * 1000))
        await self._end(request, kept)

    async def end_of_app(self, app: str, owner: str, kept: Iterable[SlotBinding] = ()) -> None:
        await self._end(credentials_pb2.EndGrantsRequest(app=app, app_owner=owner), kept)

    async def _end(self, request: credentials_pb2.EndGrantsRequest, kept: Iterable[SlotBinding]) -> None:
        for one in kept:
            request.kept.add(slot=one.slot, entry=one.entry, credential=one.credential)
        await self._stub.EndGrants(request)

    async def _choice(self, wish: Wish) -> CredentialChoice:
        """What the slot says of the credential's kind; the vault is asked only where there is a choice."""
        choices = wish.slot.choices
        if len(choices) < 2:
            return choices[0] if choices else CredentialChoice()
        request = credentials_pb2.GetCredentialRequest(name=wish.binding.credential)
        credential = await self._stub.GetCredential(request, metadata=on_behalf_of_caller())
        for choice in choices:
            if choice.kind == credential.kind:
                return choice
        fitting = " or ".join(_words(choice.kind) for choice in choices)
        why = f"the slot {wish.slot.name} takes {fitting}, and it is {_words(credential.kind)}"
        raise Problem(Code.INVALID_ARGUMENT, field="connection.credentials", why=why)


def wishes(connection: Connection, manifest: Manifest) -> Iterator[Wish]:
    """One for each use of each credential."""
    wanted = connection.wanted
    return wishes_for(connection.name, wanted.credentials, wanted.settings, manifest)


def wishes_for(
    subject: str, bindings: Iterable[SlotBinding], settings: bytes, manifest: Manifest
) -> Iterator[Wish]:
    """For whatever holds credentials: a connection, or an app."""
    for binding in bindings:
        slot = slot_named(manifest, binding.slot)
        for purpose in purposes(slot) if slot is not None else ():
            assert slot is not None  # noqa: S101  or there would be no purpose
            yield Wish(
                subject=subject,
                settings=settings,
                plugin=manifest.name,
                binding=binding,
                slot=slot,
                purpose=purpose,
            )


def new_wishes(connection: Connection, manifest: Manifest, before: pb.Connection) -> Iterator[Wish]:
    """Those that were not granted for what was wanted before: who changes a title need not be able to grant."""
    granted = {wish.key for wish in wishes(replace(connection, wanted=before), manifest)}
    return (wish for wish in wishes(connection, manifest) if wish.key not in granted)


def purposes(slot: CredentialSlot) -> Iterator[Purpose.ValueType]:
    if CredentialSlot.USE_VERIFY in slot.uses:
        yield PURPOSE_WEBHOOK_VERIFY
    if CredentialSlot.USE_CALL in slot.uses or not slot.uses:
        yield PURPOSE_CALL


def _account(wish: Wish, choice: CredentialChoice) -> str:
    """The one account that material may be made for, where the settings name it."""
    found: Any = json.loads(wish.settings or b"{}")
    for part in choice.account_setting.split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return str(found) if choice.account_setting and found is not None else ""


def _words(kind: CredentialKind.ValueType) -> str:
    return CredentialKind.Name(kind).removeprefix("CREDENTIAL_KIND_").lower()
