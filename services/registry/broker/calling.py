"""The one way to call a plugin.

    find      the connection, and the process that its calls belong on
    admit     circuits that are closed, throttles that are over
    turn      room in the process, shared fairly
    prepare   Initialize and Authenticate, where this life of the process has not had them
    call      with a deadline a little before the caller's, so that there is time to say how it ended
    read      what came of it, as one Failure that says what was changed; circuits, throttles and listeners hear it

A call that found its plugin unprepared, its credential refused or its provider impatient is made again, as often
as the contract says and while there is time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from grpc import StatusCode
from grpc.aio import AioRpcError
from opentelemetry import propagate

from foundation.clock import Clock
from foundation.rpc.streams import Answers, streaming
from services.registry.broker import failures
from services.registry.broker.circuits import Circuits, Result, result_of
from services.registry.broker.failures import CallFailed
from services.registry.broker.mending import Attempts, Mending
from services.registry.broker.operations import Answer, Operation, Reach
from services.registry.broker.outcomes import Deaf, Listener, Outcome
from services.registry.broker.pacing import Paces
from services.registry.broker.preparing import Preparation, context
from services.registry.broker.purse import Leased, Purse
from services.registry.broker.serving import Connections, Rest, Served
from services.registry.broker.streams import AllStreams
from services.registry.broker.throttles import Throttles
from services.registry.broker.turns import Turns
from services.registry.host.host import Host
from services.registry.host.launch import Launch
from services.registry.host.process import CALLS_IN_FLIGHT, PluginDown, PluginProcess
from tieline.common.v1.failure_pb2 import Effect, Failure, FailureKind
from tieline.registry.v1.broker_pb2 import ConnectionRef

READY_SECONDS = 5.0
"""How long a call waits for a process that is being started again; longer outages are the caller's to wait out."""

RESTING_SECONDS = 5.0
"""When to ask again for a connection that somebody has paused."""

_RESTS = {
    Rest.PROVIDER: ("SUSPENDED", "is suspended until it works again"),
    Rest.ALL: ("PAUSED", "is paused"),
    Rest.ENDING: ("DELETING", "is being deleted"),
}

T = TypeVar("T")


class Calls:
    def __init__(
        self,
        host: Host,
        connections: Connections,
        purse: Purse,
        clock: Clock,
        listener: Listener | None = None,
    ) -> None:
        self._host, self._connections, self._clock = host, connections, clock
        self._listener: Listener = Deaf() if listener is None else listener
        self.preparation = Preparation(purse, clock)
        self.circuits = Circuits(clock)
        self.throttles = Throttles(clock)
        self.paces = Paces(clock)
        self._mending = Mending(self.preparation, self.throttles, purse, clock)
        self._turns: WeakKeyDictionary[PluginProcess, Turns] = WeakKeyDictionary()
        self._streams = AllStreams()

    async def unary(
        self,
        ref: ConnectionRef,
        operation: Operation,
        ask: Callable[[Reach], Awaitable[T]],
        within: float,
    ) -> Answer[T]:
        """Raises CallFailed with what is to be said to the caller."""
        served, process = await self.find(ref)
        demand_awake(served, operation)
        attempts = Attempts.within(within, self._clock)
        await self._mending.wait_out_throttle(served, operation, attempts)
        while True:
            try:
                async with self._paced(served, process, operation, attempts) as reach:
                    message = await ask(reach)
                return Answer(message, process.manifest.version, served.revision)
            except CallFailed as failed:
                await self._mending.mend(served, operation, attempts, failed)

    async def stream(
        self,
        ref: ConnectionRef,
        operation: Operation,
        ask: Callable[[Reach], Answers[T]],
        within: float,
    ) -> AsyncGenerator[T, None]:
        """Use it inside `contextlib.aclosing`: whoever leaves it early cancels the call.

        Once a frame came, nothing is repeated: the caller knows where to go on.
        """
        served, process = await self.find(ref)
        demand_awake(served, operation)
        attempts = Attempts.within(within, self._clock)
        await self._mending.wait_out_throttle(served, operation, attempts)
        begun = False
        streams = self._streams.of(process)
        while True:
            streams.demand_leave()
            try:
                async with self._paced(served, process, operation, attempts) as reach:
                    call = ask(reach)
                    async with streaming(call), aclosing(streams.frames(call)) as frames:
                        async for frame in frames:
                            if not begun:
                                process.proved()  # a frame is an answer, however the stream ends
                            begun = True
                            yield frame
            except CallFailed as failed:
                if begun:
                    raise
                await self._mending.mend(served, operation, attempts, failed)
            else:
                return

    async def find(self, ref: ConnectionRef) -> tuple[Served, PluginProcess]:
        """The connection at the revision that serves, and its process; CallFailed where there is none."""
        name = ref.connection
        served = await self._connections.find(name)
        if served is None:
            raise _unreached(failures.not_found("CONNECTION_UNKNOWN", f"there is no connection {name}"))
        if served.revision == 0:
            raise _unreached(failures.transient("NOT_APPLIED", f"no revision of {name} serves yet"))
        if ref.revision not in {0, served.revision}:
            why = f"{name} serves revision {served.revision}, not {ref.revision}"
            raise _unreached(failures.not_found("REVISION_UNKNOWN", why))
        return served, self.route(served)

    def route(self, served: Served) -> PluginProcess:
        process = self._host.route(served)
        if process is None:
            why = f"the plugin {served.plugin} is not installed"
            raise _unreached(failures.transient("PLUGIN_ABSENT", why))
        return process

    @asynccontextmanager
    async def life(
        self,
        process: PluginProcess,
        who: str,
        within: float,
        *,
        ready: float = READY_SECONDS,
        alone: bool = False,
    ) -> AsyncIterator[Launch]:
        """A turn in a process that is ready, `alone` with nobody beside; CallFailed where there is none in time."""
        turns = self._turns.get(process)
        if turns is None:
            turns = self._turns[process] = Turns(process.manifest.limits.calls_in_flight or CALLS_IN_FLIGHT)
        async with AsyncExitStack() as stack:
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(within):
                    await stack.enter_async_context(turns.turn(who))
                if alone:
                    stack.enter_context(self._streams.of(process).out_of_the_way())
                left = min(ready, within - (self._clock.monotonic() - began))
                launch = await stack.enter_async_context(process.call(max(0.0, left), alone=alone))
            except TimeoutError:
                why = f"{process.name} is busy: it takes no more calls at the moment"
                raise _unreached(failures.transient("PLUGIN_BUSY", why)) from None
            except PluginDown as down:
                raise _unreached(failures.transient("PLUGIN_DOWN", down.sentence)) from None
            yield launch

    @contextmanager
    def admitted(self, key: Hashable, what: str) -> Iterator[Verdict]:
        """Leave by one circuit; the block says in the verdict what came of it."""
        ticket = self.circuits.admit(key)
        if isinstance(ticket, float):
            why = f"{what} failed several times in a row and is left alone for {ticket:.1f} s"
            raise _unreached(failures.later(failures.transient("CIRCUIT_OPEN", why), ticket))
        verdict = Verdict()
        try:
            yield verdict
        finally:
            self.circuits.settle(key, ticket, verdict.result)

    def options(self, seconds: float) -> dict[str, Any]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return {"timeout": max(0.0, seconds), "metadata": list(carrier.items())}

    def hold(self, served: Served, operation: Operation, failure: Failure) -> None:
        """What said so without failing: it waits as if it had."""
        self.throttles.hold(served, operation.name, failure)

    def told(
        self,
        served: Served,
        version: str,
        operation: str,
        began: float,
        failure: Failure | None,
        *,
        inputs: int = 0,
        events: int = 0,
    ) -> None:
        self._listener.heard(
            Outcome(
                connection=served.connection,
                plugin=served.plugin,
                plugin_version=version,
                operation=operation,
                seconds=self._clock.monotonic() - began,
                failure=failure,
                inputs=inputs,
                events=events,
            )
        )

    @asynccontextmanager
    async def _paced(
        self, served: Served, process: PluginProcess, operation: Operation, attempts: Attempts
    ) -> AsyncIterator[Reach]:
        """As `_reaching`, once the connection may ask its provider for something."""
        async with AsyncExitStack() as stack:
            if operation.slot and not operation.receives:
                await stack.enter_async_context(self.paces.room(served, attempts.left))
                await self._mending.wait_for_pace(self.paces, served, attempts)
            yield await stack.enter_async_context(self._reaching(served, process, operation, attempts))

    @asynccontextmanager
    async def _reaching(
        self, served: Served, process: PluginProcess, operation: Operation, attempts: Attempts
    ) -> AsyncIterator[Reach]:
        """Everything around one attempt; what goes wrong in it leaves as CallFailed."""
        way = self.admitted((served.connection, operation.name), operation.name)
        alive = self.admitted(process, f"the plugin {process.name}")
        with way as of_way, alive as of_process:
            alone = self.preparation.wants_to_be_alone(process, served)
            async with self.life(process, served.connection, attempts.left, alone=alone) as launch:
                began = self._clock.monotonic()
                try:
                    reach = await self._ready(served, process, launch, operation, attempts, alone=alone)
                    try:
                        yield reach
                    except AioRpcError as failed:
                        raise await self._read(process, launch, operation, failed) from None
                except CallFailed as failed:
                    if failed.failure.kind == FailureKind.FAILURE_KIND_RATE_LIMITED:
                        self.throttles.hold(served, operation.name, failed.failure)
                    if not failed.ours:
                        of_way.result = result_of(failed.failure)
                        of_process.result = of_way.result if failed.bare else Result.GOOD
                        self.told(served, process.manifest.version, operation.name, began, failed.failure)
                    raise
                process.proved()
                of_way.result = of_process.result = Result.GOOD
                self.told(served, process.manifest.version, operation.name, began, None)

    async def _ready(
        self,
        served: Served,
        process: PluginProcess,
        launch: Launch,
        operation: Operation,
        attempts: Attempts,
        *,
        alone: bool,
    ) -> Reach:
        try:
            async with asyncio.timeout(attempts.left):
                return await self._prepare(served, process, launch, operation, attempts, alone=alone)
        except TimeoutError:
            why = "the plugin was not made ready in time"
            raise _unreached(failures.transient("NOT_READY", why)) from None

    async def _prepare(
        self,
        served: Served,
        process: PluginProcess,
        launch: Launch,
        operation: Operation,
        attempts: Attempts,
        *,
        alone: bool,
    ) -> Reach:
        failure = await self.preparation.initialize(process, launch, served, alone=alone)
        if failure is not None:
            raise _unreached(failure)
        attempts.launch, attempts.used = launch, {}
        if operation.slot:
            contents = await self.preparation.authenticate(process, launch, served)
            _demand_credential(contents, process, operation)
            attempts.used = {slot: one for slot, one in contents.items() if isinstance(one, Leased)}
        versions = [one.version for one in attempts.used.values()]
        return Reach(launch.stub, context(served, versions), self.options(attempts.left))

    async def _read(
        self, process: PluginProcess, launch: Launch, operation: Operation, failed: AioRpcError
    ) -> CallFailed:
        """What the call ended with; for a write of which that says nothing, its effect is unknown."""
        read = failures.read(failed)
        # An error of a library may quote the request, and the credential in it.
        read.failure.message = launch.secrets.covered(read.failure.message)
        if failed.code() is StatusCode.DEADLINE_EXCEEDED and read.bare:
            read = CallFailed(failures.transient("TOO_SLOW", "the plugin did not answer in time"), bare=True)
        if failed.code() is StatusCode.UNAVAILABLE and read.bare:
            report = await process.autopsy(launch)
            if report is not None:
                why = f"the plugin ended during the call: {report.sentence}"
                read = CallFailed(failures.transient("PLUGIN_CRASHED", why), bare=True)
        if read.failure.kind == FailureKind.FAILURE_KIND_NOT_PREPARED:
            read.failure.effect = Effect.EFFECT_NONE
        if operation.writes and not read.failure.effect:
            read.failure.effect = Effect.EFFECT_UNKNOWN
        return read


@dataclass(slots=True)
class Verdict:
    result: Result = Result.UNTOLD


def demand_awake(served: Served, operation: Operation) -> None:
    """CallFailed where the connection rests: with all of it, or with what calls the provider."""
    if (
        operation.receives
        or served.rest is Rest.NONE
        or (served.rest is Rest.PROVIDER and not operation.slot)
    ):
        return
    reason, what = _RESTS[served.rest]
    failure = failures.transient(reason, f"{served.connection} {what}")
    raise _unreached(failures.later(failure, RESTING_SECONDS))


def _unreached(failure: Failure) -> CallFailed:
    return CallFailed(failures.untouched(failure), reached=False)


def _demand_credential(
    contents: dict[tuple[str, str], Leased | Failure], process: PluginProcess, operation: Operation
) -> None:
    """What the operation calls with must be there; other slots are other operations' trouble."""
    declared = any(slot.name == operation.slot for slot in process.manifest.credential_slots)
    mine = {
        entry: one
        for (slot, entry), one in contents.items()
        if slot == operation.slot and (not operation.entry or entry == operation.entry)
    }
    if not mine and declared:
        why = f"nothing fills the slot {operation.slot}, which {operation.name} calls with"
        raise _unreached(failures.invalid_config("SLOT_EMPTY", why))
    refusals = [one for one in mine.values() if isinstance(one, Failure)]
    if mine and len(refusals) == len(mine):
        raise _unreached(refusals[0])
