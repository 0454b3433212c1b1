"""What is done about a call that failed, as often as the contract says and while there is time.

A write is made again only where its failure says that nothing was changed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Self

from foundation.clock import Clock
from services.registry.broker import failures
from services.registry.broker.failures import CallFailed
from services.registry.broker.operations import Operation
from services.registry.broker.pacing import Paces
from services.registry.broker.preparing import Preparation
from services.registry.broker.purse import Leased, Purse
from services.registry.broker.serving import Served
from services.registry.broker.throttles import Throttles
from services.registry.host.launch import Launch
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind
from tieline.credentials.v1.leases_pb2 import ReportRefusalResponse

MARGIN_SECONDS = 0.2
"""What a call keeps of its caller's time, to say how it ended."""
DEFECT_REPEATS = 2
PATIENCE = 5
"""How often one call waits for its provider."""
PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class Attempts:
    """What was tried already, so that each remedy is used as often as the contract says."""

    clock: Clock
    ends: float
    prepared: bool = False
    refreshed: bool = False
    defects: int = 0
    waits: int = 0
    launch: Launch | None = None
    """The life that was called last."""
    used: dict[tuple[str, str], Leased] = field(default_factory=dict)
    """The credentials that the call went out with."""

    @classmethod
    def within(cls, seconds: float, clock: Clock) -> Self:
        """What ends a little before its caller's patience does."""
        return cls(clock, clock.monotonic() + seconds - min(MARGIN_SECONDS, seconds / 10))

    @property
    def left(self) -> float:
        return max(0.0, self.ends - self.clock.monotonic())


class Mending:
    def __init__(self, preparation: Preparation, throttles: Throttles, purse: Purse, clock: Clock) -> None:
        self._preparation, self._throttles = preparation, throttles
        self._purse, self._clock = purse, clock

    async def mend(
        self, served: Served, operation: Operation, attempts: Attempts, failed: CallFailed
    ) -> None:
        """Returns where the call is to be made again; raises what is to be said where it is not."""
        failure = failed.failure
        if operation.writes and failure.effect != Effect.EFFECT_NONE:
            if failure.kind == FailureKind.FAILURE_KIND_AUTH_FAILED:
                await self._refresh(attempts, failure)  # not for this call: for the next one
            raise failed
        match failure.kind:
            case FailureKind.FAILURE_KIND_NOT_PREPARED:
                if attempts.prepared:
                    why = "the plugin forgets what it was just given"
                    raise CallFailed(failures.untouched(failures.internal("NOT_PREPARED", why))) from None
                attempts.prepared = True
                if attempts.launch is not None:
                    self._preparation.forget(attempts.launch, served)
            case FailureKind.FAILURE_KIND_AUTH_FAILED if attempts.used:
                refreshed = await self._refresh(attempts, failure)
                if attempts.refreshed or not refreshed:
                    raise failed
                attempts.refreshed = True
            case FailureKind.FAILURE_KIND_RATE_LIMITED if attempts.waits < PATIENCE:
                attempts.waits += 1
                await self.wait_out_throttle(served, operation, attempts)
            case FailureKind.FAILURE_KIND_INTERNAL if (
                not operation.writes and attempts.defects < DEFECT_REPEATS
            ):
                attempts.defects += 1
                await self._pause(random.uniform(0, PAUSE_SECONDS * 2**attempts.defects), attempts, failed)  # noqa: S311
            case _:
                raise failed

    async def _refresh(self, attempts: Attempts, failure: Failure) -> bool:
        """The provider refused a credential: whether there is reason to try again."""
        refused = _refused(attempts, failure)
        if refused is None:
            return False
        if 0 < failure.credential_version.version < refused.version.version:
            return True  # it went out with an older one than we hold
        answer = await self._purse.refused(refused, failure)
        if answer.advice == ReportRefusalResponse.ADVICE_WAIT:
            seconds = answer.retry_after.ToTimedelta().total_seconds()
            await self._pause(seconds, attempts, CallFailed(failure))
            return True
        return answer.advice == ReportRefusalResponse.ADVICE_REACQUIRE

    async def wait_out_throttle(self, served: Served, operation: Operation, attempts: Attempts) -> None:
        remaining = self._throttles.remaining(served, operation.name)
        if remaining:
            why = f"the provider asks for patience: {remaining:.1f} s more"
            limited = failures.untouched(failures.rate_limited(why, remaining))
            await self._pause(remaining, attempts, CallFailed(limited, reached=False))

    async def wait_for_pace(self, paces: Paces, served: Served, attempts: Attempts) -> None:
        """Until the connection's own limit lets it; RATE_LIMITED where that takes longer than there is time."""
        while remaining := paces.take(served):
            why = f"{served.connection} may make {served.pace.calls_per_minute} calls in a minute, and made them"
            limited = failures.untouched(failures.rate_limited(why, remaining))
            await self._pause(remaining, attempts, CallFailed(limited))

    async def _pause(self, seconds: float, attempts: Attempts, otherwise: CallFailed) -> None:
        """Wait if there is time for it and for a call afterwards."""
        if seconds >= attempts.left:
            raise otherwise
        await self._clock.sleep(seconds)


def _refused(attempts: Attempts, failure: Failure) -> Leased | None:
    """The credential that a refusal speaks of; nobody guesses where there are several."""
    used = attempts.used
    if failure.HasField("credential_version"):
        return used.get((failure.credential_version.slot, failure.credential_version.entry))
    return next(iter(used.values())) if len(used) == 1 else None
