"""The credentials that plugins call their providers with: borrowed for them from the vault, and handed on.

A plugin gets the fields that its manifest declares for the slot and nothing else. All that an instance needs is
asked for in one question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import structlog
from grpc.aio import Channel

from foundation.clock import Clock
from foundation.errors import Problem
from foundation.leasing import Borrowed, Held, Place
from services.registry.broker import failures
from services.registry.broker.serving import Binding, Served
from tieline.common.v1.failure_pb2 import CredentialVersion, Failure
from tieline.credentials.v1 import leases_pb2_grpc
from tieline.credentials.v1.credentials_pb2 import PURPOSE_CALL
from tieline.credentials.v1.leases_pb2 import ReportRefusalRequest, ReportRefusalResponse
from tieline.plugin.v1.instance_pb2 import CredentialMaterial
from tieline.plugin.v1.manifest_pb2 import CredentialSlot, Manifest

log = structlog.get_logger(__name__)

Advice = ReportRefusalResponse


@dataclass(frozen=True, slots=True)
class Leased:
    """A credential as its plugin gets it, and where it came from."""

    place: Place
    lease: str
    material: CredentialMaterial = field(repr=False)

    @property
    def slot(self) -> tuple[str, str]:
        return self.place.slot, self.place.entry

    @property
    def version(self) -> CredentialVersion:
        return self.material.version


Contents = Mapping[tuple[str, str], Leased | Failure]
"""By slot and entry."""


class Receiver(Protocol):
    """Who has handed credentials on, and does so again when they change."""

    async def renewed(self, leased: Leased) -> None: ...

    async def lost(self, place: Place, version: int) -> None: ...


class Purse(Protocol):
    async def contents(self, served: Served, manifest: Manifest) -> Contents:
        """What fills the slots that the plugin calls with."""

    async def refused(self, leased: Leased, failure: Failure) -> ReportRefusalResponse:
        """The provider refused this one: what the vault says to that."""

    def tell(self, receiver: Receiver) -> None:
        """Whom to tell of changes."""


class EmptyPurse:
    """Where no vault is: connections of plugins that need no credentials."""

    async def contents(self, served: Served, manifest: Manifest) -> Contents:
        why = "there is no vault to borrow from"
        return {
            (one.slot, one.entry): failures.transient("VAULT_ABSENT", why) for one in called(served, manifest)
        }

    async def refused(self, _: Leased, __: Failure) -> ReportRefusalResponse:
        return ReportRefusalResponse(advice=ReportRefusalResponse.ADVICE_GIVE_UP)

    def tell(self, receiver: Receiver) -> None: ...


class VaultPurse:
    """`async with` it."""

    def __init__(self, credentials: Channel, clock: Clock) -> None:
        self._stub = leases_pb2_grpc.LeaseServiceStub(credentials)
        self._borrowed = Borrowed(credentials, clock, listener=self)
        self._receiver: Receiver | None = None
        self._slots: dict[Place, CredentialSlot] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def tell(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def contents(self, served: Served, manifest: Manifest) -> Contents:
        slots = {slot.name: slot for slot in manifest.credential_slots}
        places = {place_of(served, one, manifest): slots[one.slot] for one in called(served, manifest)}
        if not places:
            return {}
        try:
            answers = await self._borrowed.get([*places])
        except Problem as problem:
            away = failures.transient("VAULT_AWAY", problem.sentence)
            return {(place.slot, place.entry): away for place in places}
        contents: dict[tuple[str, str], Leased | Failure] = {}
        for (place, slot), held in zip(places.items(), answers, strict=True):
            if held.failure is None:
                self._slots[place] = slot
            contents[place.slot, place.entry] = held.failure or leased(place, held, slot)
        return contents

    async def refused(self, leased: Leased, failure: Failure) -> ReportRefusalResponse:
        said = Failure()
        said.CopyFrom(failure)
        said.credential_version.CopyFrom(leased.version)
        try:
            answer = await self._stub.ReportRefusal(ReportRefusalRequest(lease=leased.lease, failure=said))
        except Problem as problem:
            log.info("a refusal could not be reported", connection=leased.place.subject, why=problem.sentence)
            return ReportRefusalResponse(advice=ReportRefusalResponse.ADVICE_GIVE_UP)
        if answer.advice != ReportRefusalResponse.ADVICE_GIVE_UP:
            self._borrowed.refused(leased.place, leased.version.version)
        return answer

    def renewed(self, place: Place, held: Held) -> None:
        slot = self._slots.get(place)
        if self._receiver is not None and slot is not None:
            self._spawn(self._receiver.renewed(leased(place, held, slot)))

    def lost(self, place: Place, held: Held) -> None:
        self._slots.pop(place, None)
        if self._receiver is not None:
            self._spawn(self._receiver.lost(place, held.secret.lease.version.version))

    async def __aenter__(self) -> Self:
        await self._borrowed.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._borrowed.__aexit__()
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)

    def _spawn(self, telling: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(telling, name="hand on a change of a credential")
        self._telling.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a change of a credential was not handed on", error=type(task.exception()).__name__)


def called(served: Served, manifest: Manifest) -> Sequence[Binding]:
    """What is filled of the slots that the plugin calls its provider with."""
    names = {slot.name for slot in manifest.credential_slots if is_called(slot)}
    return [one for one in served.bindings if one.slot in names]


def is_called(slot: CredentialSlot) -> bool:
    return not slot.uses or CredentialSlot.USE_CALL in slot.uses


def place_of(served: Served, binding: Binding, manifest: Manifest) -> Place:
    return Place(
        subject=served.connection,
        slot=binding.slot,
        entry=binding.entry,
        purpose=PURPOSE_CALL,
        plugin=manifest.name,
        plugin_version=manifest.version,
        credential=binding.credential,
    )


def leased(place: Place, held: Held, slot: CredentialSlot) -> Leased:
    """Only what the slot declares for the kind, even where a grant is wider."""
    secret = held.secret
    choice = next((choice for choice in slot.choices if choice.kind == secret.kind), None)
    wanted = set(choice.fields) if choice is not None else set()
    material = CredentialMaterial(
        version=CredentialVersion(slot=place.slot, entry=place.entry, version=secret.lease.version.version),
        kind=secret.kind,
        fields={name: value for name, value in secret.fields.items() if not wanted or name in wanted},
        attributes=secret.attributes,
    )
    if secret.HasField("expire_time"):
        material.expires_at.CopyFrom(secret.expire_time)
    return Leased(place, held.lease, material)
