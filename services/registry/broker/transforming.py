"""TransformData: inputs of many connections, cut into batches for their plugins, and taken apart where one does harm.

Pure, so whatever is in doubt may be asked again, and no credential is ever handed over for it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from grpc import StatusCode
from grpc.aio import AioRpcError

from foundation.clock import Clock
from foundation.process.supervised import Report
from services.registry.broker import failures
from services.registry.broker.batches import Batch, Share, cut
from services.registry.broker.calling import Calls, Verdict, demand_awake
from services.registry.broker.circuits import Result, result_of
from services.registry.broker.failures import CallFailed
from services.registry.broker.mending import MARGIN_SECONDS
from services.registry.broker.operations import Operation
from services.registry.broker.preparing import context
from services.registry.broker.serving import Served
from services.registry.broker.tallies import Tally
from services.registry.broker.trials import Case, Patience, Trials
from services.registry.broker.turns import MANY
from services.registry.broker.verdicts import Declared
from services.registry.host.launch import Launch
from services.registry.host.process import PluginProcess
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.transform_pb2 import (
    TransformDataRequest,
    TransformDataResponse,
    TransformGroup,
    TransformGroupResult,
    TransformInput,
)
from tieline.registry.v1 import broker_pb2

OPERATION = "TransformData"
_ASKED = Operation(name=OPERATION)

Group = broker_pb2.TransformDataRequest.Group
Parts = list[tuple[int, Served, Sequence[TransformInput]]]
Answers = dict[int, TransformGroupResult]
"""By group."""
Admitted = list[tuple[Share, Verdict]]
"""Those whose circuits are closed."""


@dataclass(frozen=True, slots=True)
class Harm:
    """A call came to no answer, and one of its inputs may be at fault for all of them."""

    report: Report | None = None
    """How the process ended, if it did."""


class Transforming:
    def __init__(self, calls: Calls, trials: Trials, clock: Clock, patience: Patience) -> None:
        self._calls, self._trials = calls, trials
        self._clock, self._patience = clock, patience
        self._declared: WeakKeyDictionary[PluginProcess, Declared] = WeakKeyDictionary()

    async def transform(
        self, groups: Sequence[Group], within: float
    ) -> list[broker_pb2.TransformDataResponse.Result]:
        """One result for each group, in order."""
        ends = self._clock.monotonic() + within - min(MARGIN_SECONDS, within / 10)
        tallies = [Tally() for _ in groups]
        by_process: dict[PluginProcess, Parts] = defaultdict(list)
        for index, group in enumerate(groups):
            try:
                served, process = await self._calls.find(group.ref)
                demand_awake(served, _ASKED)
            except CallFailed as failed:
                tallies[index].failed(group.inputs, failed.failure)
                continue
            tallies[index].result.revision = served.revision
            tallies[index].result.plugin_version = process.manifest.version
            by_process[process].append((index, served, group.inputs))
        async with asyncio.TaskGroup() as tasks:
            for process, parts in by_process.items():
                tasks.create_task(self._at(process, parts, tallies, ends))
        return [tally.finish() for tally in tallies]

    async def _at(self, process: PluginProcess, parts: Parts, tallies: Sequence[Tally], ends: float) -> None:
        """Whoever is not suspected goes first, in batches; then, one by one, who is or has become so."""
        free, suspected = self._separate(process, parts)
        async with asyncio.TaskGroup() as tasks:
            batches = [
                tasks.create_task(self._batch(process, batch, tallies, ends))
                for batch in cut(free, process.manifest)
            ]
        suspected.extend(case for batch in batches for case in batch.result())
        if not suspected:
            return

        began = self._clock.monotonic()

        def tell(case: Case, answer: TransformGroupResult | Failure) -> None:
            tally = tallies[case.group]
            if isinstance(answer, Failure):
                tally.failed_alone(case.item, answer)
            else:
                self._tell(process, case.served, answer, began, inputs=1)
                share = Share(case.group, case.served, [case.item])
                tally.answered(share, answer, self._declares(process))

        await self._trials.hear(process, suspected, self._ask_alone, tell, ends)

    def _separate(self, process: PluginProcess, parts: Parts) -> tuple[Parts, list[Case]]:
        free: Parts = []
        suspected: list[Case] = []
        for index, served, inputs in parts:
            apart = self._calls.preparation.wants_to_be_alone(process, served)
            known = [item for item in inputs if apart or self._trials.known(process, served, item)]
            suspected.extend(Case(index, served, item) for item in known)
            ids = {item.input_id for item in known}
            free.append(
                (index, served, [item for item in inputs if item.input_id not in ids] if ids else inputs)
            )
        return free, suspected

    async def _batch(
        self, process: PluginProcess, batch: Batch, tallies: Sequence[Tally], ends: float
    ) -> list[Case]:
        """One call to one plugin; the inputs that have to be asked alone, because it came to no answer."""
        with ExitStack() as stack:
            admitted: Admitted = []
            answers: Answers | Harm = {}
            for share in batch:
                try:
                    way = self._calls.admitted((share.served.connection, OPERATION), OPERATION)
                    admitted.append((share, stack.enter_context(way)))
                except CallFailed as failed:
                    tallies[share.group].failed(share.inputs, failed.failure)
            try:
                answers = await self._call(process, admitted, ends) if admitted else {}
            except CallFailed as failed:
                for share, _ in admitted:
                    tallies[share.group].failed(share.inputs, failed.failure)
                return []
        if isinstance(answers, Harm):
            cases = [Case(share.group, share.served, item) for share, _ in admitted for item in share.inputs]
            self._trials.accuse(process, cases, answers.report)
            return cases
        for share, _ in admitted:
            tallies[share.group].answered(share, answers[share.group], self._declares(process))
        return []

    async def _call(self, process: PluginProcess, admitted: Admitted, ends: float) -> Answers | Harm:
        """An answer for each group, or the harm for which the batch is to be taken apart."""
        batch = [share for share, _ in admitted]
        began = self._clock.monotonic()
        with self._calls.admitted(process, f"the plugin {process.name}") as alive:
            async with self._calls.life(process, _who(batch), ends - began) as launch:
                seconds = min(self._patience.batch, (ends - self._clock.monotonic()) / 2)
                try:
                    answers = await self._ask(process, launch, batch, seconds)
                except AioRpcError as failed:
                    harm = await self._harm(process, launch, batch, failed)
                    if harm is not None:
                        return harm
                    read = failures.read(failed)
                    alive.result = result_of(read.failure)
                    for share in batch:
                        self._calls.told(
                            share.served, process.manifest.version, OPERATION, began, read.failure
                        )
                    raise read from None
            alive.result = Result.GOOD
        if not all(answer.HasField("failure") for answer in answers.values()):
            self._trials.proved(process)
        for share, way in admitted:
            answer = answers[share.group]
            way.result = result_of(_failure(answer))
            self._tell(process, share.served, answer, began, inputs=len(share.inputs))
        return answers

    async def _harm(
        self, process: PluginProcess, launch: Launch, batch: Batch, failed: AioRpcError
    ) -> Harm | None:
        """What one of the inputs may have done to all of them."""
        report = await self._trials.ended(process, launch, failed)
        if report is not None:
            return Harm(report)
        read = failures.read(failed)
        if failed.code() is StatusCode.DEADLINE_EXCEEDED and read.bare:
            await self._trials.unstick(process, launch)
            return Harm()
        # A defect, or an answer that is too large: the others should not pay for it.
        several = sum(len(share.inputs) for share in batch) > 1
        return Harm() if several and read.failure.kind == FailureKind.FAILURE_KIND_INTERNAL else None

    async def _ask_alone(
        self, process: PluginProcess, launch: Launch, case: Case, seconds: float
    ) -> TransformGroupResult:
        share = Share(case.group, case.served, [case.item])
        return (await self._ask(process, launch, [share], seconds, alone=True))[case.group]

    async def _ask(
        self, process: PluginProcess, launch: Launch, batch: Batch, seconds: float, *, alone: bool = False
    ) -> Answers:
        """Prepare what has to be prepared, ask, and ask once more where the plugin turned out to have forgotten."""
        answers = await self._prepare(process, launch, batch, seconds, alone=alone)
        fit = [share for share in batch if share.group not in answers]
        answers |= await self._send(launch, fit, seconds)
        forgotten = [share for share in fit if _is_forgotten(answers[share.group])]
        for share in forgotten:
            self._calls.preparation.forget(launch, share.served)
        unfit = await self._prepare(process, launch, forgotten, seconds, alone=alone)
        answers |= unfit
        again = [share for share in forgotten if share.group not in unfit]
        answers |= await self._send(launch, again, seconds)
        for share in again:
            if _is_forgotten(answers[share.group]):
                why = "the plugin forgets what it was just given"
                answers[share.group] = TransformGroupResult(failure=failures.internal("NOT_PREPARED", why))
        return answers

    async def _prepare(
        self, process: PluginProcess, launch: Launch, batch: Batch, seconds: float, *, alone: bool
    ) -> Answers:
        """Have the process hold every instance of the batch; answers the groups for which it would not."""
        preparation = self._calls.preparation
        outcomes = await asyncio.gather(
            *(preparation.initialize(process, launch, share.served, seconds, alone=alone) for share in batch)
        )
        return {
            share.group: TransformGroupResult(failure=failure)
            for share, failure in zip(batch, outcomes, strict=True)
            if failure is not None
        }

    async def _send(self, launch: Launch, batch: Batch, seconds: float) -> Answers:
        if not batch:
            return {}
        request = TransformDataRequest(groups=map(_group, batch))
        answer: TransformDataResponse = await launch.stub.TransformData(
            request, **self._calls.options(seconds)
        )
        if len(answer.results) != len(batch):
            why = f"{len(answer.results)} results came for {len(batch)} groups"
            broken = TransformGroupResult(failure=failures.internal("RESULTS_MISSING", why))
            return {share.group: broken for share in batch}
        for share, result in zip(batch, answer.results, strict=True):
            if result.instance_id not in ("", share.served.instance):
                why = "the plugin answers for another instance than it was asked for"
                result.CopyFrom(TransformGroupResult(failure=failures.internal("RESULTS_MIXED", why)))
            if result.HasField("failure"):
                result.failure.CopyFrom(failures.bounded(result.failure))
        return {share.group: result for share, result in zip(batch, answer.results, strict=True)}

    def _tell(
        self, process: PluginProcess, served: Served, answer: TransformGroupResult, began: float, inputs: int
    ) -> None:
        self._calls.told(
            served,
            process.manifest.version,
            OPERATION,
            began,
            _failure(answer) or _of_all(answer),
            inputs=inputs,
            events=sum(len(outcome.events.drafts) for outcome in answer.outcomes),
        )

    def _declares(self, process: PluginProcess) -> Declared:
        found = self._declared.get(process)
        if found is None:
            found = self._declared[process] = Declared(process.manifest)
        return found


def _group(share: Share) -> TransformGroup:
    return TransformGroup(context=context(share.served), inputs=share.inputs)


def _who(batch: Batch) -> str:
    """A batch of one connection is that connection's; of many, everybody's."""
    connections = {share.served.connection for share in batch}
    return connections.pop() if len(connections) == 1 else MANY


def _failure(answer: TransformGroupResult) -> Failure | None:
    return answer.failure if answer.HasField("failure") else None


def _of_all(answer: TransformGroupResult) -> Failure | None:
    """What every one of the inputs failed with, if none of them came to anything: the first one's failure."""
    failed = [outcome for outcome in answer.outcomes if outcome.HasField("failure")]
    return failed[0].failure if failed and len(failed) == len(answer.outcomes) else None


def _is_forgotten(answer: TransformGroupResult) -> bool:
    return answer.failure.kind == FailureKind.FAILURE_KIND_NOT_PREPARED
