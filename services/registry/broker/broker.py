"""The broker: the only client of plugins. Callers name connections; instances, replays and deaths are its own affair."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from grpc import StatusCode
from grpc.aio import AioRpcError
from opentelemetry import propagate

from services.registry.broker import failures
from services.registry.broker.batches import Batch, Share, cut
from services.registry.broker.serving import Connections, Served
from services.registry.broker.verdicts import Declared, judged
from services.registry.host.host import Host
from services.registry.host.launch import Launch
from services.registry.host.process import PluginDown, PluginProcess
from tieline.common.v1.failure_pb2 import Failure, FailureKind
from tieline.plugin.v1.instance_pb2 import InitializeRequest, InstanceContext
from tieline.plugin.v1.transform_pb2 import (
    TransformDataRequest,
    TransformDataResponse,
    TransformGroup,
    TransformGroupResult,
    TransformInput,
)
from tieline.registry.v1 import broker_pb2

TRANSFORM_SECONDS = 10.0
INITIALIZE_SECONDS = 5.0
READY_SECONDS = 5.0
"""How long a call waits for a process that is being started again; longer outages are the caller's to wait out."""

Result = broker_pb2.TransformDataResponse.Result
Group = broker_pb2.TransformDataRequest.Group


class Broker:
    def __init__(self, host: Host, connections: Connections) -> None:
        self._host = host
        self._connections = connections
        self._declared: WeakKeyDictionary[PluginProcess, Declared] = WeakKeyDictionary()

    async def transform(self, groups: Sequence[Group], within: float = TRANSFORM_SECONDS) -> list[Result]:
        """One result for each group, in order. Pure, so whatever is in doubt may simply be asked again."""
        results = [Result() for _ in groups]
        by_process: dict[PluginProcess, list[tuple[int, Served, Sequence[TransformInput]]]] = defaultdict(
            list
        )
        for index, group in enumerate(groups):
            found = await self._find(group)
            if isinstance(found, Failure):
                results[index].failure.CopyFrom(found)
            else:
                served, process = found
                results[index].revision = served.revision
                results[index].plugin_version = process.manifest.version
                by_process[process].append((index, served, group.inputs))
        async with asyncio.TaskGroup() as tasks:
            for process, parts in by_process.items():
                for batch in cut(parts, process.manifest):
                    tasks.create_task(self._run(process, batch, results, within))
        return results

    async def initialize(self, served: Served, *, validate_only: bool = False) -> Failure | None:
        """Have the plugin take a revision; None when it did. With `validate_only` it only looks."""
        process = self._host.route(served)
        if process is None:
            return failures.transient("PLUGIN_ABSENT", f"there is no plugin {served.plugin}")
        try:
            async with process.call(READY_SECONDS) as launch:
                return await _initialize(launch, served, validate_only=validate_only)
        except PluginDown as down:
            return failures.transient("PLUGIN_DOWN", down.sentence)

    async def _find(self, group: Group) -> tuple[Served, PluginProcess] | Failure:
        name = group.ref.connection
        served = await self._connections.find(name)
        if served is None:
            return failures.not_found("CONNECTION_UNKNOWN", f"there is no connection {name}")
        if served.revision == 0:
            return failures.transient("NOT_APPLIED", f"no revision of {name} serves yet")
        if group.ref.revision not in {0, served.revision}:
            why = f"{name} serves revision {served.revision}, not {group.ref.revision}"
            return failures.not_found("REVISION_UNKNOWN", why)
        process = self._host.route(served)
        if process is None:
            return failures.transient("PLUGIN_ABSENT", f"the plugin {served.plugin} is not installed")
        return served, process

    def _declares(self, process: PluginProcess) -> Declared:
        return self._declared.setdefault(process, Declared(process.manifest))

    async def _run(self, process: PluginProcess, batch: Batch, results: list[Result], within: float) -> None:
        """One call to one plugin. If it fails as a whole, all of the batch does, and nothing else."""
        try:
            async with process.call(min(within, READY_SECONDS)) as launch:
                try:
                    told = await _transform(launch, batch, within)
                except AioRpcError as failed:
                    if failed.code() is StatusCode.UNAVAILABLE:
                        await process.autopsy(launch)
                    told = [TransformGroupResult(failure=failures.of_call(failed))] * len(batch)
                else:
                    process.proved()
        except PluginDown as down:
            failure = failures.transient("PLUGIN_DOWN", down.sentence)
            told = [TransformGroupResult(failure=failure)] * len(batch)
        for share, answer in zip(batch, told, strict=True):
            result = results[share.group]
            if answer.HasField("failure"):
                result.failure.CopyFrom(answer.failure)
            else:
                result.outcomes.extend(judged(share, answer, self._declares(process)))
            if result.HasField("failure"):
                # A group fails whole: half of it, from another batch, would be lost on its caller.
                del result.outcomes[:]


async def _transform(launch: Launch, batch: Batch, within: float) -> list[TransformGroupResult]:
    """Prepare what has to be prepared, ask, and ask once more where the plugin turned out to have forgotten."""
    unfit = await _prepare(launch, batch)
    told = await _ask(launch, [share for share in batch if share.group not in unfit], within)
    answers = {**unfit, **told}
    forgotten = [share for share in batch if _not_prepared(answers[share.group])]
    if forgotten:
        for share in forgotten:
            launch.prepared.pop(share.served.instance, None)
        answers |= await _prepare(launch, forgotten)
        fit = [share for share in forgotten if share.served.instance in launch.prepared]
        answers |= await _ask(launch, fit, within)
        for share in forgotten:
            if _not_prepared(answers[share.group]):
                why = "the plugin forgets what it was just given"
                answers[share.group] = TransformGroupResult(failure=failures.internal("NOT_PREPARED", why))
    return [answers[share.group] for share in batch]


async def _prepare(launch: Launch, batch: Batch) -> dict[int, TransformGroupResult]:
    """Have the process hold every instance of the batch; answers the groups for which it would not."""
    missing = [
        share for share in batch if launch.prepared.get(share.served.instance) != share.served.revision
    ]
    outcomes = await asyncio.gather(*(_initialize(launch, share.served) for share in missing))
    return {
        share.group: TransformGroupResult(failure=failure)
        for share, failure in zip(missing, outcomes, strict=True)
        if failure is not None
    }


async def _initialize(launch: Launch, served: Served, *, validate_only: bool = False) -> Failure | None:
    request = InitializeRequest(
        instance_id=served.instance,
        config_revision=served.revision,
        settings=served.settings,
        settings_version=served.settings_version,
        account_keys=served.account_keys,
        validate_only=validate_only,
    )
    try:
        answer = await launch.stub.Initialize(request, timeout=INITIALIZE_SECONDS)
    except AioRpcError as failed:
        return failures.of_call(failed)
    if validate_only:
        # Invalid settings are then an answer like any other, with errors in it.
        return failures.of_diagnostics(answer.diagnostics)
    launch.prepared[served.instance] = served.revision
    return None


async def _ask(launch: Launch, batch: Batch, within: float) -> dict[int, TransformGroupResult]:
    if not batch:
        return {}
    request = TransformDataRequest(groups=map(_group, batch))
    answer: TransformDataResponse = await launch.stub.TransformData(
        request, timeout=within, metadata=_trace()
    )
    if len(answer.results) != len(batch):
        why = f"{len(answer.results)} results came for {len(batch)} groups"
        broken = TransformGroupResult(failure=failures.internal("RESULTS_MISSING", why))
        return {share.group: broken for share in batch}
    return {share.group: result for share, result in zip(batch, answer.results, strict=True)}


def _group(share: Share) -> TransformGroup:
    context = InstanceContext(instance_id=share.served.instance, config_revision=share.served.revision)
    return TransformGroup(context=context, inputs=share.inputs)


def _not_prepared(answer: TransformGroupResult) -> bool:
    return answer.failure.kind == FailureKind.FAILURE_KIND_NOT_PREPARED


def _trace() -> list[tuple[str, str]]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())
