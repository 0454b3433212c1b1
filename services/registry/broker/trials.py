"""Finding out which input ends a plugin's process, or keeps it from answering: each suspect is asked alone.

An input that answers alone is innocent, and its answer is its answer. One that ends the process alone, twice, is
poison; one that alone is not answered in time, three times, is hopeless. Neither is the plugin's disgrace, so
such a death is excused and never adds up to a crash loop. Only where many inputs end it, or those of several
connections, and nobody is answered in between, is it the plugin that is broken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import structlog
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foundation.clock import Clock
from foundation.process.supervised import Report
from services.registry.broker import failures
from services.registry.broker.calling import Calls
from services.registry.broker.failures import CallFailed
from services.registry.broker.serving import Served
from services.registry.broker.suspects import Suspects, Suspicion, fingerprint
from services.registry.host.launch import Launch
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.transform_pb2 import TransformGroupResult, TransformInput

log = structlog.get_logger(__name__)

DEATHS = 2
STALLS = 3
CONNECTIONS, INPUTS = 3, 10
"""So many must have ended the process, with no answer to anybody in between, for it to be blamed."""
NAMED = 100
"""Inputs of a batch that a crash's record names."""
ALIVE_SECONDS = 3.0
"""A process that does not even say that it is alive after this long is stuck."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input of one group, to be asked alone."""

    group: int
    served: Served
    item: TransformInput


Ask = Callable[[PluginProcess, Launch, Case, float], Awaitable[TransformGroupResult]]
"""Asks a process for one input; raises AioRpcError where it did not answer."""
Tell = Callable[[Case, TransformGroupResult | Failure], None]
"""Takes what became of a case; called once for each."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for a batch, and for one input that is asked alone."""

    batch: float = 10.0
    alone: float = 5.0


@dataclass(slots=True)
class Reputation:
    """Of a process: what ended it since it last answered anything."""

    connections: set[str] = field(default_factory=set)
    inputs: set[bytes] = field(default_factory=set)

    @property
    def broken(self) -> bool:
        return len(self.connections) >= CONNECTIONS or len(self.inputs) >= INPUTS


class Trials:
    def __init__(self, calls: Calls, suspects: Suspects, clock: Clock, patience: Patience) -> None:
        self._calls, self._suspects = calls, suspects
        self._clock, self._patience = clock, patience
        self._reputations: WeakKeyDictionary[PluginProcess, Reputation] = WeakKeyDictionary()

    def proved(self, process: PluginProcess) -> None:
        """It answered somebody."""
        process.proved()
        self._reputations.pop(process, None)

    def accuse(self, process: PluginProcess, cases: Sequence[Case], report: Report | None) -> None:
        """They were there when it ended of that, or when it did not answer."""
        for case in cases:
            self._suspects.accuse(process, case.served, case.item)
        if report is not None:
            process.accuse(report, tuple(case.item.input_id for case in cases[:NAMED]))

    def known(self, process: PluginProcess, served: Served, item: TransformInput) -> Suspicion | None:
        return self._suspects.of(process, served, item)

    async def hear(
        self, process: PluginProcess, cases: Sequence[Case], ask: Ask, tell: Tell, ends: float
    ) -> None:
        """Each of them alone; those that end it come once more when all the others have their answers."""
        for _ in range(DEATHS):
            again: list[Case] = []
            for number, case in enumerate(cases):
                try:
                    answer = await self._one(process, case, ask, ends)
                except CallFailed as failed:
                    # There is no process to ask, or no time: the rest is tried when it is sent again.
                    for left in [*again, *cases[number:]]:
                        tell(left, failed.failure)
                    return
                if answer is None:
                    again.append(case)
                else:
                    tell(case, answer)
            cases = again
        for case in cases:  # somebody else forgot it meanwhile
            tell(case, failures.transient("SUSPECTED", "its plugin ended while it was in flight"))

    async def _one(
        self, process: PluginProcess, case: Case, ask: Ask, ends: float
    ) -> TransformGroupResult | Failure | None:
        """Its answer or verdict; None where it has to be asked once more."""
        suspicion = self._suspects.accuse(process, case.served, case.item)
        if suspicion.verdict is not None:
            return suspicion.verdict
        left = ends - self._clock.monotonic()
        if left <= 0:
            why = "its plugin ended or hung while it was in flight, and there was no time to ask it alone"
            raise CallFailed(failures.transient("SUSPECTED", why))
        async with self._calls.life(process, case.served.connection, left, ready=left, alone=True) as launch:
            seconds = min(self._patience.alone, ends - self._clock.monotonic())
            try:
                answer = await ask(process, launch, case, seconds)
            except AioRpcError as failed:
                report = await self.ended(process, launch, failed)
                if report is not None:
                    return self._died(process, case, suspicion, report)
                if failed.code() is StatusCode.DEADLINE_EXCEEDED:
                    await self.unstick(process, launch)
                    return self._stalled(case, suspicion, seconds)
                return self._failed(process, case, failed)
        if not answer.HasField("failure"):  # else it was not looked at
            self.proved(process)
            self._suspects.acquit(process, case.served, case.item)
        return answer

    async def ended(self, process: PluginProcess, launch: Launch, failed: AioRpcError) -> Report | None:
        """How the process ended, if that is what broke the call off."""
        cut_off = failed.code() is StatusCode.UNAVAILABLE and failures.read(failed).bare
        return await process.autopsy(launch) if cut_off else None

    def _failed(self, process: PluginProcess, case: Case, failed: AioRpcError) -> Failure:
        self._suspects.acquit(process, case.served, case.item)
        read = failures.read(failed)
        if failed.code() is StatusCode.RESOURCE_EXHAUSTED and read.bare:
            return failures.invalid_input("RESULT_TOO_LARGE", "what it becomes does not fit into one message")
        return read.failure

    def _died(
        self, process: PluginProcess, case: Case, suspicion: Suspicion, report: Report
    ) -> Failure | None:
        process.accuse(report, (case.item.input_id,))
        reputation = self._reputations.setdefault(process, Reputation())
        reputation.connections.add(case.served.connection)
        reputation.inputs.add(fingerprint(process, case.served, case.item))
        if reputation.broken:
            # Nothing works any more: what it counts is counted, and nobody's input is blamed for it.
            why = f"the plugin ends whatever it is asked: {report.sentence}"
            raise CallFailed(failures.transient("PLUGIN_CRASHES", why))
        process.excuse(1)
        suspicion.deaths += 1
        if suspicion.deaths < DEATHS:
            return None
        process.excuse(1)  # the crash that brought it here
        why = f"it ended its plugin alone, {DEATHS} times: {report.sentence}"
        suspicion.verdict = failures.invalid_input("POISON", why)
        log.warning("an input is poison", plugin=process.name, connection=case.served.connection)
        return suspicion.verdict

    def _stalled(self, case: Case, suspicion: Suspicion, seconds: float) -> Failure:
        why = f"asked alone, its plugin did not answer within {seconds:.3g} s"
        if seconds < self._patience.alone:
            return failures.transient("SUSPECTED", why)  # it was given less than everybody gets
        suspicion.stalls += 1
        if suspicion.stalls < STALLS:
            return failures.transient("TOO_SLOW", why)
        suspicion.verdict = failures.invalid_input("TOO_SLOW", f"{why}, {STALLS} times")
        log.warning("an input is too slow", connection=case.served.connection)
        return suspicion.verdict

    async def unstick(self, process: PluginProcess, launch: Launch) -> None:
        """A process that is still at what nobody waits for, and deaf, is ended; that is not its disgrace."""
        health: Any = health_pb2_grpc.HealthStub(launch.channel)
        try:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=ALIVE_SECONDS)
        except AioRpcError:
            if launch.crash is None:
                log.warning("a plugin is stuck and ended", plugin=process.name)
                process.end("it did not answer in time, and was deaf for everything else")
                if await process.autopsy(launch) is not None:
                    process.excuse(1)
