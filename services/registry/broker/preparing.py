"""Making a process ready for a call: Initialize and Authenticate, given again to whatever life is there.

A plugin holds nothing that matters. What it was given is noted with its life, so a new life starts with nothing
and is given what a call needs just before that call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import structlog
from grpc import StatusCode
from grpc.aio import AioRpcError, UsageError

from foundation.clock import Clock
from foundation.leasing import Place
from services.registry.broker import failures
from services.registry.broker.deadly import Deadly
from services.registry.broker.failures import CallFailed
from services.registry.broker.purse import Leased, Purse
from services.registry.broker.serving import Served
from services.registry.host.launch import Launch
from services.registry.host.prepared import Prepared
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import CredentialVersion, Failure, FailureKind
from tieline.plugin.v1.instance_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    HealthCheckRequest,
    HealthCheckResponse,
    InitializeRequest,
    InitializeResponse,
    InstanceContext,
    ReleaseRequest,
)
from tieline.plugin.v1.manifest_pb2 import CAPABILITY_RELEASE

log = structlog.get_logger(__name__)

INITIALIZE_SECONDS = 5.0
AUTHENTICATE_SECONDS = 5.0
CHECKUP_SECONDS = 60.0
"""How long a plugin's findings are good where it does not say."""
FINDINGS_TOLD = 5
WHY = 200
RELEASE_SECONDS = 5.0
TRANSLATIONS = 10_000
WITHDRAWALS = 3
"""How often a process that does not answer is told to wipe something."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a plugin thinks of settings."""

    failure: Failure | None = None
    """Why it would not take them."""
    migrated: bytes = b""
    """The settings as its version would write them; empty: as they are."""


@dataclass(slots=True)
class Handed:
    """What the present life of a process was given, and for whom."""

    launch: Launch
    places: dict[Place, dict[str, Served]] = field(default_factory=dict)
    """By instance: two revisions of a connection may use one credential."""

    def add(self, leased: Leased, served: Served) -> None:
        self.places.setdefault(leased.place, {})[served.instance] = served


class Preparation:
    def __init__(self, purse: Purse, clock: Clock) -> None:
        self._purse = purse
        self._deadly = Deadly(clock)
        self._translations: OrderedDict[tuple[str, str], tuple[bytes, str]] = OrderedDict()
        self._handed: WeakKeyDictionary[PluginProcess, Handed] = WeakKeyDictionary()
        purse.tell(self)

    async def initialize(
        self,
        process: PluginProcess,
        launch: Launch,
        served: Served,
        within: float = INITIALIZE_SECONDS,
        *,
        alone: bool = False,
    ) -> Failure | None:
        """Have the process hold exactly this revision; None when it does. `alone`: nobody else is in the process."""
        held = launch.prepared.setdefault(served.instance, Prepared())
        held.connection = served.connection
        async with held.changing:
            if held.revision == served.revision:
                return None
            served = self.translated(process, served)
            if verdict := self._deadly.verdict(process, served):
                return verdict
            held.revision = 0
            try:
                await _initialize(launch, served, within)
            except AioRpcError as failed:
                read = failures.read(failed)
                if failed.code() is StatusCode.UNAVAILABLE and read.bare:
                    report = await process.autopsy(launch)
                    if report is not None:
                        self._deadly.died(process, served, report, alone=alone)
                        return self._deadly.verdict(process, served) or read.failure
                return read.failure
            held.revision = served.revision
            self._deadly.taken(process, served)
            return None

    async def validate(self, launch: Launch, served: Served) -> Opinion:
        """What the plugin thinks of the settings, and how it would write them if they are of an older version."""
        try:
            answer = await _initialize(launch, served, INITIALIZE_SECONDS, validate_only=True)
        except AioRpcError as failed:
            return Opinion(failures.of_call(failed))
        # Invalid settings are then an answer like any other, with errors in it.
        return Opinion(failures.of_diagnostics(answer.diagnostics), answer.migrated_settings)

    def translate(self, served: Served, version: str, settings: bytes, settings_version: str) -> None:
        """From now on this version of the plugin is given these settings for the instance, in place of its own.

        So the settings fit from the first call after an upgrade, before the revision that holds them is stored.
        """
        self._translations[served.instance, version] = (settings, settings_version)
        while len(self._translations) > TRANSLATIONS:
            self._translations.popitem(last=False)

    def translated(self, process: PluginProcess, served: Served) -> Served:
        """As this version of the plugin is to be given it."""
        found = self._translations.get((served.instance, process.manifest.version))
        return served if found is None else replace(served, settings=found[0], settings_version=found[1])

    async def release(self, process: PluginProcess, instance: str) -> None:
        """Have the process forget an instance and wipe its secrets; a process that is gone has."""
        launch = process.launch
        held = launch.prepared.get(instance) if launch is not None else None
        if launch is None or held is None:
            return
        handed = self._handed.get(process)
        for places in handed.places.values() if handed is not None else ():
            places.pop(instance, None)
        async with held.changing:
            launch.prepared.pop(instance, None)
            launch.enclosure.forget(instance)
            try:
                await _release(process, launch, instance, held)
            except (AioRpcError, UsageError) as failed:
                log.info("an instance was not released", plugin=process.name, why=type(failed).__name__)

    def wants_to_be_alone(self, process: PluginProcess, served: Served) -> bool:
        """Its settings may have ended the process before."""
        return self._deadly.suspects(process, served)

    async def authenticate(
        self, process: PluginProcess, launch: Launch, served: Served
    ) -> dict[tuple[str, str], Leased | Failure]:
        """Have the process hold every credential that fills one of its slots: what it holds, or why not."""
        contents = dict(await self._purse.contents(served, process.manifest))
        # All of them before the first is given: what is revoked meanwhile is not given any more, or taken back.
        handed = self._handed_to(process, launch)
        for one in contents.values():
            if isinstance(one, Leased):
                handed.add(one, served)
        for slot, leased in contents.items():
            if isinstance(leased, Leased) and (failure := await self._give(process, launch, served, leased)):
                contents[slot] = failure
        return contents

    async def probe(
        self,
        process: PluginProcess,
        launch: Launch,
        served: Served,
        slot: tuple[str, str],
        within: float,
    ) -> AuthenticateResponse.Probe | Failure:
        """Give it, and have the provider asked whether it works."""
        leased = (await self._purse.contents(served, process.manifest)).get(slot)
        if leased is None:
            return failures.not_found("SLOT_EMPTY", f"nothing fills the slot {slot[0]}")
        if isinstance(leased, Failure):
            return leased
        self._handed_to(process, launch).add(leased, served)
        answer = await self._hand(process, launch, served, leased, probe=within)
        if isinstance(answer, Failure):
            return answer
        if not answer.HasField("probe"):
            return failures.internal("PROBE_MISSING", "the plugin did not say what its provider said")
        return answer.probe

    def forget(self, launch: Launch, served: Served) -> None:
        """The process says that it does not hold it, whatever we thought."""
        held = launch.prepared.get(served.instance)
        if held is not None:
            held.revision = 0
            held.credentials.clear()

    async def renewed(self, leased: Leased) -> None:
        """A newer version: whoever holds an older one gets it now, calls or not."""
        for process, handed in list(self._handed.items()):
            for served in list(handed.places.get(leased.place, {}).values()):
                failure = await self._give(process, handed.launch, served, leased)
                if failure is not None:
                    log.info("a newer credential waits for the next call", plugin=process.name)

    async def lost(self, place: Place, version: int) -> None:
        """Revoked, or its lease is over: whoever holds it wipes it."""
        for process, handed in list(self._handed.items()):
            for served in handed.places.pop(place, {}).values():
                await _withdraw(handed.launch, served, place, version)
                log.info("a credential was taken back", plugin=process.name, connection=place.subject)

    def _handed_to(self, process: PluginProcess, launch: Launch) -> Handed:
        """What this life was given, and for whom."""
        handed = self._handed.get(process)
        if handed is None or handed.launch is not launch:
            handed = Handed(launch)
            if launch is process.launch:  # a straggler of an earlier life is not the present one
                self._handed[process] = handed
        return handed

    async def _give(
        self, process: PluginProcess, launch: Launch, served: Served, leased: Leased
    ) -> Failure | None:
        held = launch.prepared.setdefault(served.instance, Prepared())
        if held.credentials.get(leased.slot) == leased.version.version:
            return None
        answer = await self._hand(process, launch, served, leased)
        return answer if isinstance(answer, Failure) else None

    async def _hand(
        self, process: PluginProcess, launch: Launch, served: Served, leased: Leased, *, probe: float = 0
    ) -> AuthenticateResponse | Failure:
        """With `probe`, the provider is asked too and may take so many seconds."""
        places = self._handed_to(process, launch).places
        launch.secrets.update(leased.material.fields.values(), leased.material.previous_secrets)
        held = launch.prepared.setdefault(served.instance, Prepared())
        async with held.changing:
            if served.instance not in places.get(leased.place, {}):
                return failures.transient("CREDENTIAL_WITHDRAWN", "it was revoked before it was handed over")
            request = AuthenticateRequest(
                instance_id=served.instance, credential=leased.material, probe=probe > 0
            )
            try:
                answer = await _authenticate(launch, request, probe)
                if answer.stale:
                    # Another credential fills the slot now, and its versions are counted by themselves.
                    older = CredentialVersion(
                        slot=leased.place.slot, entry=leased.place.entry, version=answer.held_version
                    )
                    await _authenticate(
                        launch, AuthenticateRequest(instance_id=served.instance, withdrawn=older)
                    )
                    answer = await _authenticate(launch, request, probe)
            except CallFailed as failed:
                held.credentials.pop(leased.slot, None)
                return failed.failure
            held.credentials[leased.slot] = leased.version.version
            return answer


def context(served: Served, versions: Sequence[CredentialVersion] = ()) -> InstanceContext:
    return InstanceContext(instance_id=served.instance, config_revision=served.revision, credentials=versions)


@dataclass(frozen=True, slots=True)
class Checkup:
    """What a plugin found when it looked at an instance."""

    failure: Failure | None = None
    """Why it does not work, or not all of it."""
    degraded: bool = False
    """Some of it works."""
    valid_for: float = CHECKUP_SECONDS

    @property
    def dead(self) -> Failure | None:
        """What keeps the instance from working at all."""
        return None if self.degraded else self.failure


async def checked(
    launch: Launch, served: Served, versions: Sequence[CredentialVersion], within: float
) -> Checkup:
    try:
        answer = await launch.stub.HealthCheck(
            HealthCheckRequest(context=context(served, versions)), timeout=within
        )
    except AioRpcError as failed:
        return Checkup(failures.of_call(failed))
    seconds = answer.valid_for.ToTimedelta().total_seconds() if answer.HasField("valid_for") else 0.0
    valid_for = seconds or CHECKUP_SECONDS
    if answer.state == HealthCheckResponse.STATE_OK:
        return Checkup(valid_for=valid_for)
    found = [finding for finding in answer.findings if finding.state != HealthCheckResponse.STATE_OK]
    why = "; ".join(f"{finding.name}: {finding.failure.message}"[:WHY] for finding in found[:FINDINGS_TOLD])
    degraded = answer.state == HealthCheckResponse.STATE_DEGRADED
    words = "the plugin says that it cannot work" if not degraded else "the plugin says that some of it fails"
    failure = failures.transient("UNHEALTHY", launch.secrets.covered(why) or words)
    kinds = {finding.failure.kind for finding in found}
    if len(kinds) == 1 and kinds <= _LASTING:
        failure.kind = kinds.pop()
    return Checkup(failure, degraded, valid_for)


_LASTING = {
    FailureKind.FAILURE_KIND_AUTH_FAILED,
    FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    FailureKind.FAILURE_KIND_INVALID_CONFIG,
    FailureKind.FAILURE_KIND_NOT_FOUND,
    FailureKind.FAILURE_KIND_UNSUPPORTED,
}
"""What no amount of waiting mends."""


async def _initialize(
    launch: Launch, served: Served, within: float, *, validate_only: bool = False
) -> InitializeResponse:
    request = InitializeRequest(
        instance_id=served.instance,
        config_revision=served.revision,
        settings=served.settings,
        settings_version=served.settings_version,
        account_keys=served.account_keys,
        flags=served.flags,
        validate_only=validate_only,
    )
    if not validate_only:
        launch.enclosure.allow(served.instance, served.settings)  # the hosts that its settings name
    return await launch.stub.Initialize(request, timeout=min(within, INITIALIZE_SECONDS))


async def _authenticate(
    launch: Launch, request: AuthenticateRequest, within: float = 0
) -> AuthenticateResponse:
    try:
        return await launch.stub.Authenticate(request, timeout=within or AUTHENTICATE_SECONDS)
    except AioRpcError as failed:
        raise failures.read(failed) from None
    except UsageError:  # this life is over, and its channel closed
        raise CallFailed(failures.transient("PLUGIN_DOWN", "its process has ended")) from None


async def _withdraw(launch: Launch, served: Served, place: Place, version: int) -> None:
    held = launch.prepared.get(served.instance)
    if held is None:
        return
    gone = CredentialVersion(slot=place.slot, entry=place.entry, version=version)
    async with held.changing:
        if held.credentials.get((place.slot, place.entry), 0) <= version:
            held.credentials.pop((place.slot, place.entry), None)
        for attempt in range(WITHDRAWALS):
            if launch.crash is not None:
                return
            try:
                await _authenticate(launch, AuthenticateRequest(instance_id=served.instance, withdrawn=gone))
            except CallFailed as failed:
                if failed.failure.reason in ("PLUGIN_DOWN", "INSTANCE_NOT_INITIALIZED"):
                    return
                log.warning("a credential is not taken back yet", attempt=attempt + 1, why=str(failed))
            else:
                return


async def _release(process: PluginProcess, launch: Launch, instance: str, held: Prepared) -> None:
    if CAPABILITY_RELEASE in process.manifest.capabilities:
        await launch.stub.Release(ReleaseRequest(instance_id=instance), timeout=RELEASE_SECONDS)
        return
    for (slot, entry), version in held.credentials.items():
        gone = CredentialVersion(slot=slot, entry=entry, version=version)
        request = AuthenticateRequest(instance_id=instance, withdrawn=gone)
        await launch.stub.Authenticate(request, timeout=RELEASE_SECONDS)
