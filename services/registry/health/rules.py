"""What is to be called healthy: pure, so that it can be read, and held against any history of outcomes.

Three things are looked at apart. The process: can it take calls? The instance: what does the plugin find when it
looks? The outcomes: what do calls show? The worst of them decides, and the first of the worst says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from services.registry.connections.connection import Application, Connection, State
from services.registry.health.window import Traffic
from tieline.common.v1.failure_pb2 import Failure, FailureKind


class Health(IntEnum):
    """As the contract numbers them."""

    UNKNOWN = 0
    OK = 1
    DEGRADED = 2
    DOWN = 3
    PAUSED = 4


class Cause(Enum):
    """What a verdict rests on."""

    NONE = auto()
    STATE = auto()
    APPLICATION = auto()
    PROCESS = auto()
    INSTANCE = auto()
    OUTCOMES = auto()
    CIRCUIT = auto()
    LAG = auto()


# Of the others some are the caller's affair, and some say that all is well but slow.
_COUNTED = {
    FailureKind.FAILURE_KIND_UNSPECIFIED,
    FailureKind.FAILURE_KIND_TRANSIENT,
    FailureKind.FAILURE_KIND_AUTH_FAILED,
    FailureKind.FAILURE_KIND_PERMISSION_DENIED,
    FailureKind.FAILURE_KIND_INVALID_CONFIG,
    FailureKind.FAILURE_KIND_INTERNAL,
    FailureKind.FAILURE_KIND_NOT_PREPARED,
}
_SAYS_NOTHING = {FailureKind.FAILURE_KIND_RATE_LIMITED}


def failed(failure: Failure | None) -> bool | None:
    """Whether a call's end speaks against its connection; None: neither for nor against."""
    if failure is None:
        return False
    if failure.kind in _SAYS_NOTHING:
        return None
    return failure.kind in _COUNTED


@dataclass(frozen=True, slots=True)
class Rules:
    streak: int = 5
    """So many failures in a row: down."""
    fewest: int = 10
    """A share of fewer calls than this says little: a failure among them is DEGRADED, no more."""
    degraded: float = 0.05
    down: float = 0.5
    lag: float = 300.0
    """Seconds that the oldest delivery or record may wait."""

    def outcomes(self, traffic: Traffic, streak: int) -> Health:
        """What the calls of the window show; `streak` failures came last, with no success after them."""
        if not traffic.calls:
            return Health.UNKNOWN
        share = traffic.failures / traffic.calls
        if streak >= self.streak or (traffic.calls >= self.fewest and share >= self.down):
            return Health.DOWN
        if traffic.failures and (traffic.calls < self.fewest or share >= self.degraded):
            return Health.DEGRADED
        return Health.OK


def together(parts: Iterable[Health]) -> Health:
    """What several replicas find: where they differ, some of it works."""
    known = {part for part in parts if part is not Health.UNKNOWN}
    if len(known) > 1:
        return Health.DEGRADED
    return known.pop() if known else Health.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that is known about a connection at one moment."""

    process: Health = Health.UNKNOWN
    process_says: str = ""
    instance: Health = Health.UNKNOWN
    instance_says: str = ""
    outcomes: Health = Health.UNKNOWN
    traffic: Traffic
    last_failure: str = ""
    circuits: Sequence[str] = ()
    """Operations that are not called at the moment."""
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health
    cause: Cause
    explanation: str
    """One line for people: why, and what to do. Empty where nothing is to be said."""


def judge(connection: Connection, found: Findings, rules: Rules) -> Verdict:
    if (resting := _resting(connection)) is not None:
        return resting
    reasons = list(_reasons(connection, found, rules))
    if reasons:
        return max(reasons, key=lambda verdict: verdict.health)
    looked_at = (found.process, found.instance, found.outcomes)
    known = any(part is Health.OK for part in looked_at)
    return Verdict(
        Health.OK if known else Health.UNKNOWN, Cause.NONE, "" if known else "nothing is known of it yet"
    )


def _resting(connection: Connection) -> Verdict | None:
    why = connection.failure.message if connection.failure is not None else ""
    match connection.state:
        case State.PAUSED:
            said = f"paused: {why}" if why else "paused"
            return Verdict(Health.PAUSED, Cause.STATE, f"{said}; `tieline connection resume` goes on")
        case State.DELETING:
            return Verdict(Health.PAUSED, Cause.STATE, "is being deleted")
        case State.SUSPENDED:
            return Verdict(
                Health.DOWN, Cause.STATE, f"suspended: {why}; it goes on by itself once that is mended"
            )
        case State.PENDING if connection.application is Application.FAILED:
            said = _said(connection.application_failure)
            why = f"not applied: {said}; mend that and `tieline connection resume`, or `update` it"
            return Verdict(Health.DOWN, Cause.APPLICATION, why)
        case State.PENDING:
            said = _said(connection.application_failure)
            why = f"waits to be applied: {said}" if said else "is being applied"
            return Verdict(Health.DOWN if said else Health.UNKNOWN, Cause.APPLICATION, why)
    return None


def _reasons(connection: Connection, found: Findings, rules: Rules) -> Iterable[Verdict]:
    """Everything that is not as it should be; among equals the first one is told."""
    if found.process in (Health.DEGRADED, Health.DOWN):
        yield Verdict(found.process, Cause.PROCESS, f"plugin {connection.plugin} {found.process_says}")
    if found.instance in (Health.DEGRADED, Health.DOWN):
        yield Verdict(found.instance, Cause.INSTANCE, f"its check finds: {found.instance_says}")
    if found.outcomes in (Health.DEGRADED, Health.DOWN):
        many = f"{found.traffic.failures} of {found.traffic.calls} calls failed"
        yield Verdict(found.outcomes, Cause.OUTCOMES, f"{many}, at last: {found.last_failure}")
    if found.circuits:
        which = ", ".join(found.circuits)
        yield Verdict(Health.DEGRADED, Cause.CIRCUIT, f"left alone for a while after failures: {which}")
    if found.lag > rules.lag:
        yield Verdict(Health.DEGRADED, Cause.LAG, f"the oldest delivery has waited for {found.lag:.0f} s")
    if connection.application is Application.FAILED:
        why = f"revision {connection.applied_revision} serves; {connection.revision} was not taken"
        yield Verdict(Health.DEGRADED, Cause.APPLICATION, f"{why}: {_said(connection.application_failure)}")


def _said(failure: Failure | None) -> str:
    return failure.message if failure is not None else ""
