"""The broker: the only client of plugins. Callers name connections; instances, replays and deaths are its own affair."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.clock import Clock, SystemClock
from services.registry.broker.calling import READY_SECONDS, Calls
from services.registry.broker.examining import Examining
from services.registry.broker.executing import Executing
from services.registry.broker.failures import CallFailed
from services.registry.broker.fetching import Fetching
from services.registry.broker.looking import Looking
from services.registry.broker.outcomes import Listener
from services.registry.broker.preparing import Checkup, Opinion, checked
from services.registry.broker.purse import EmptyPurse, Leased, Purse
from services.registry.broker.serving import Connections, Served
from services.registry.broker.suspects import Suspects
from services.registry.broker.transforming import Group, Transforming
from services.registry.broker.trials import Patience, Trials
from services.registry.broker.verifying import Verifying
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure
from tieline.plugin.v1.instance_pb2 import AuthenticateResponse
from tieline.registry.v1 import broker_pb2

TRANSFORM_SECONDS = 30.0
PROBE_SECONDS = 20.0
HEALTH_SECONDS = 20.0


class Broker:
    def __init__(
        self,
        host: Host,
        connections: Connections,
        purse: Purse | None = None,
        *,
        clock: Clock | None = None,
        listener: Listener | None = None,
        patience: Patience | None = None,
    ) -> None:
        clock, purse, patience = clock or SystemClock(), purse or EmptyPurse(), patience or Patience()
        self.calls = Calls(host, connections, purse, clock, listener)
        trials = Trials(self.calls, Suspects(clock), clock, patience)
        self._transforming = Transforming(self.calls, trials, clock, patience)
        self.executing = Executing(self.calls)
        self.looking = Looking(self.calls, clock)
        self.fetching = Fetching(self.calls)
        self.verifying = Verifying(self.calls)
        self.examining = Examining(self.calls, purse)

    async def transform(
        self, groups: Sequence[Group], within: float = TRANSFORM_SECONDS
    ) -> list[broker_pb2.TransformDataResponse.Result]:
        """One result for each group, in order. Pure, so whatever is in doubt may simply be asked again."""
        return await self._transforming.transform(groups, within)

    async def initialize(self, served: Served, *, validate_only: bool = False) -> Failure | None:
        """Have the plugin take a revision; None when it did. With `validate_only` it only looks."""
        if validate_only:
            return (await self.opinion(served)).failure
        try:
            return await self.prepare(self.calls.route(served), served)
        except CallFailed as failed:
            return failed.failure

    async def opinion(self, served: Served, process: PluginProcess | None = None) -> Opinion:
        """What the plugin thinks of the settings, in the process that calls go to unless another one is named."""
        try:
            process = process or self.calls.route(served)
            async with self.calls.life(process, served.connection, READY_SECONDS) as launch:
                return await self.calls.preparation.validate(launch, served)
        except CallFailed as failed:
            return Opinion(failed.failure)

    async def prepare(self, process: PluginProcess, served: Served) -> Failure | None:
        """Have this very process hold the instance, whichever process its calls go to now."""
        preparation = self.calls.preparation
        alone = preparation.wants_to_be_alone(process, served)
        try:
            async with self.calls.life(process, served.connection, READY_SECONDS, alone=alone) as launch:
                return await preparation.initialize(process, launch, served, alone=alone)
        except CallFailed as failed:
            return failed.failure

    async def unhealthy(self, process: PluginProcess, served: Served) -> Failure | None:
        """Why this very process cannot work for the instance, by its own account; None if it can, or cannot tell."""
        try:
            return (await self.examine(process, served)).dead
        except CallFailed as failed:
            return failed.failure

    async def examine(self, process: PluginProcess, served: Served) -> Checkup:
        """What this very process finds when it looks at the instance; CallFailed where it could not be asked."""
        preparation = self.calls.preparation
        async with self.calls.life(process, served.connection, READY_SECONDS) as launch:
            if failure := await preparation.initialize(process, launch, served):
                return Checkup(failure)
            held = await preparation.authenticate(process, launch, served)
            versions = [one.version for one in held.values() if isinstance(one, Leased)]
            return await checked(launch, served, versions, HEALTH_SECONDS)

    async def probe(
        self, served: Served, slot: str, entry: str = "", within: float = PROBE_SECONDS
    ) -> AuthenticateResponse.Probe | Failure:
        """What the provider says of the credential that fills a slot, by way of the plugin.

        A Probe that is not valid is the provider's answer; a Failure says that it could not be asked.
        """
        preparation = self.calls.preparation
        try:
            process = self.calls.route(served)
            async with self.calls.life(process, served.connection, within) as launch:
                failure = await preparation.initialize(process, launch, served, within)
                if failure is not None:
                    return failure
                return await preparation.probe(process, launch, served, (slot, entry), within)
        except CallFailed as failed:
            return failed.failure
