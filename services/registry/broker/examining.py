"""Looking whether a revision can work, before anybody relies on it.

The plugin takes it, the provider accepts the credentials with every permission that is needed, and the instance
says that it can do its work. A revision has an instance of its own, so none of this is noticed by the one that serves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.registry.broker import failures
from services.registry.broker.calling import READY_SECONDS, Calls
from services.registry.broker.failures import CallFailed
from services.registry.broker.preparing import checked
from services.registry.broker.purse import Leased, Purse, called
from services.registry.broker.serving import Binding, Served
from services.registry.host.launch import Launch
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.instance_pb2 import AuthenticateResponse
from tieline.plugin.v1.manifest_pb2 import CredentialChoice, Manifest

PROBE_SECONDS = 20.0
HEALTH_SECONDS = 20.0

NOBODY_ASKED = "plugin"
"""The subject of a finding that says that there was no process to ask."""

Probe = AuthenticateResponse.Probe


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was asked."""

    subject: str
    """`settings`, `credential api`, `scope checks:read`, `health`."""
    failure: Failure | None = None
    needed: bool = True
    """Without it the revision cannot serve."""


@dataclass(slots=True)
class Examination:
    findings: list[Finding] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    """At the provider, which the credentials control."""

    @property
    def failure(self) -> Failure | None:
        """Why the revision cannot serve."""
        return _worst([one.failure for one in self.findings if one.failure is not None and one.needed])


class Examining:
    def __init__(self, calls: Calls, purse: Purse) -> None:
        self._calls, self._purse = calls, purse
        self._under_way: Counter[str] = Counter()

    def concerns(self, instance: str) -> bool:
        """Whether it is being looked at now, though perhaps it serves nobody."""
        return self._under_way[instance] > 0

    @contextmanager
    def about(self, served: Served) -> Iterator[None]:
        """Inside, nobody releases the instance."""
        self._under_way[served.instance] += 1
        try:
            yield
        finally:
            self._under_way[served.instance] -= 1
            self._under_way += Counter()

    async def examine(self, process: PluginProcess, served: Served) -> Examination:
        """All there is to say: a step whose ground is missing is not taken."""
        examination = Examination()
        with self.about(served):
            try:
                async for finding in self._findings(process, served, examination.accounts):
                    examination.findings.append(finding)
            except CallFailed as failed:
                examination.findings.append(Finding(NOBODY_ASKED, failed.failure))
        return examination

    async def _findings(
        self, process: PluginProcess, served: Served, accounts: list[str]
    ) -> AsyncIterator[Finding]:
        preparation = self._calls.preparation
        alone = preparation.wants_to_be_alone(process, served)
        async with self._calls.life(process, served.connection, READY_SECONDS, alone=alone) as launch:
            failure = await preparation.initialize(process, launch, served, alone=alone)
        yield Finding("settings", failure)
        if failure is not None:
            return
        well = True
        for binding in called(served, process.manifest):
            async for finding in self._of_credential(process, served, binding, accounts):
                well = well and (finding.failure is None or not finding.needed)
                yield finding
        if well:
            yield Finding("health", await self._health(process, served))

    async def _of_credential(
        self, process: PluginProcess, served: Served, binding: Binding, accounts: list[str]
    ) -> AsyncIterator[Finding]:
        preparation, slot = self._calls.preparation, (binding.slot, binding.entry)
        subject = f"credential {binding.slot}" + (f"/{binding.entry}" if binding.entry else "")
        leased = (await self._purse.contents(served, process.manifest)).get(slot)
        if not isinstance(leased, Leased):
            yield Finding(subject, leased or failures.not_found("SLOT_EMPTY", f"nothing fills the {subject}"))
            return
        async with self._calls.life(process, served.connection, READY_SECONDS) as launch:
            failure = await preparation.initialize(process, launch, served)
            answer = failure or await preparation.probe(process, launch, served, slot, PROBE_SECONDS)
            failure = _covered(_objection(answer), launch)
        yield Finding(subject, failure)
        if isinstance(answer, Failure) or failure is not None:
            return
        accounts.extend(answer.account_keys)
        for finding in _scopes(answer, _declared(process.manifest, binding.slot, leased)):
            yield finding

    async def _health(self, process: PluginProcess, served: Served) -> Failure | None:
        preparation = self._calls.preparation
        async with self._calls.life(process, served.connection, READY_SECONDS) as launch:
            if failure := await preparation.initialize(process, launch, served):
                return failure
            held = await preparation.authenticate(process, launch, served)
            refusals = [one for one in held.values() if isinstance(one, Failure)]
            if refusals:
                return refusals[0]
            versions = [one.version for one in held.values() if isinstance(one, Leased)]
            return _covered((await checked(launch, served, versions, HEALTH_SECONDS)).dead, launch)


def _objection(answer: Probe | Failure) -> Failure | None:
    """Why the credential does not do; None where it does, or where the plugin has no way to ask."""
    if isinstance(answer, Failure):
        return answer
    if answer.valid or answer.failure.kind == FailureKind.FAILURE_KIND_UNSUPPORTED:
        return None
    if answer.failure.kind:
        return failures.bounded(answer.failure)
    return failures.auth_failed("CREDENTIAL_REFUSED", "the provider does not accept it")


def _scopes(probe: Probe, declared: Mapping[str, CredentialChoice.Scope]) -> Iterator[Finding]:
    for name in dict.fromkeys([*declared, *probe.missing_scopes]):
        scope = declared.get(name, CredentialChoice.Scope(name=name))
        failure = None
        if name in probe.missing_scopes:
            reason = f", needed for: {scope.reason}" if scope.reason else ""
            failure = failures.permission_denied("SCOPE_MISSING", f"the scope {name} is missing{reason}")
        yield Finding(f"scope {name}", failure, needed=not scope.optional)


def _declared(manifest: Manifest, slot: str, leased: Leased) -> Mapping[str, CredentialChoice.Scope]:
    """What the manifest says is needed of a credential of that kind."""
    return {
        scope.name: scope
        for one in manifest.credential_slots
        if one.name == slot
        for choice in one.choices
        if choice.kind == leased.material.kind
        for scope in choice.scopes
    }


def _worst(told: list[Failure]) -> Failure | None:
    """All that is missing in one: whoever mends the first would otherwise find the next."""
    if not told:
        return None
    first = told[0]
    alike = [one.message for one in told if (one.kind, one.reason) == (first.kind, first.reason)]
    if len(alike) == 1:
        return first
    return failures.bounded(Failure(kind=first.kind, reason=first.reason, message="; ".join(alike)))


def _covered(failure: Failure | None, launch: Launch) -> Failure | None:
    """A plugin may quote what it was given."""
    if failure is not None:
        failure.message = launch.secrets.covered(failure.message)
    return failure
