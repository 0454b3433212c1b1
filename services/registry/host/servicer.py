from __future__ import annotations

import socket
from collections import deque
from datetime import timedelta

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.process.supervised import State
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from services.registry.catalogue.versions import Version
from services.registry.egress.refusals import Refusal
from services.registry.host.crashes import Crash
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from services.registry.host.rollouts import LONGEST_OBSERVATION, OBSERVATION, Rollout, Rollouts, Stage
from services.registry.host.watchdog import memory_of
from tieline.registry.v1 import processes_pb2 as pb
from tieline.registry.v1 import processes_pb2_grpc

# ruff: noqa: N802  the contract's names

_STATES = {
    State.IDLE: pb.Process.STATE_STARTING,
    State.STARTING: pb.Process.STATE_STARTING,
    State.READY: pb.Process.STATE_READY,
    State.WAITING: pb.Process.STATE_BACKOFF,
    State.FAILED: pb.Process.STATE_QUARANTINED,
    State.STOPPING: pb.Process.STATE_DRAINING,
    State.STOPPED: pb.Process.STATE_STOPPED,
}
_STAGES = {
    Stage.PREPARING: pb.Rollout.STATE_PREPARING,
    Stage.SHIFTING: pb.Rollout.STATE_SHIFTING,
    Stage.OBSERVING: pb.Rollout.STATE_OBSERVING,
    Stage.DONE: pb.Rollout.STATE_DONE,
    Stage.ROLLED_BACK: pb.Rollout.STATE_ROLLED_BACK,
}
_REQUESTS_KEPT = 1000


class ProcessServicer(processes_pb2_grpc.ProcessServiceServicer):
    def __init__(self, host: Host, rollouts: Rollouts) -> None:
        self._host, self._rollouts = host, rollouts
        self._restarted: deque[str] = deque(maxlen=_REQUESTS_KEPT)

    async def GetProcess(self, request: pb.GetProcessRequest, _: ServicerContext) -> pb.Process:
        return _told(self._find(request.name))

    async def ListProcesses(
        self, request: pb.ListProcessesRequest, _: ServicerContext
    ) -> pb.ListProcessesResponse:
        (plugin,) = parse("plugins/*", request.parent, "parent")
        last = paging.after(request.page_token)
        every: dict[str, PluginProcess] = {}
        for one in self._host.everything():
            if plugin in {"-", one.name}:
                every.setdefault(one.resource, one)
        rest = [one for name, one in sorted(every.items()) if name > last]
        page, more = paging.cut(rest, paging.page_size(request.page_size), lambda one: one.resource)
        return pb.ListProcessesResponse(processes=map(_told, page), next_page_token=more)

    async def RestartProcess(self, request: pb.RestartProcessRequest, _: ServicerContext) -> pb.Process:
        process = self._find(request.name)
        if request.request_id not in self._restarted:
            if request.request_id:
                self._restarted.append(request.request_id)
            process = await self._host.restart(process)
        return _told(process)

    async def ReleaseProcess(self, request: pb.ReleaseProcessRequest, _: ServicerContext) -> pb.Process:
        process = self._find(request.name)
        process.release()
        return _told(process)

    async def UpgradePlugin(self, request: pb.UpgradePluginRequest, _: ServicerContext) -> pb.Rollout:
        (plugin,) = parse("plugins/*", request.name, "name")
        try:
            target = Version.parse(request.to_version)
        except ValueError as error:
            raise Problem(Code.INVALID_ARGUMENT, field="to_version", why=str(error)) from None
        observation = request.observation.ToTimedelta() if request.HasField("observation") else OBSERVATION
        if not timedelta() <= observation <= LONGEST_OBSERVATION:
            raise Problem(Code.INVALID_ARGUMENT, field="observation", why="it may take up to a day")
        return _rollout(self._rollouts.start(plugin, target, observation))

    async def GetRollout(self, request: pb.GetRolloutRequest, _: ServicerContext) -> pb.Rollout:
        parse("plugins/*/rollouts/*", request.name, "name")
        return _rollout(self._rollouts.get(request.name))

    async def CancelRollout(self, request: pb.CancelRolloutRequest, _: ServicerContext) -> pb.Rollout:
        parse("plugins/*/rollouts/*", request.name, "name")
        return _rollout(await self._rollouts.cancel(request.name))

    def _find(self, name: str) -> PluginProcess:
        parse("plugins/*/processes/*", name, "name")
        for process in self._host.everything():
            if process.resource == name:
                return process
        raise Problem(Code.NOT_FOUND, what=f"process {name}")


def _told(process: PluginProcess) -> pb.Process:
    pid = process.pid
    told = pb.Process(
        name=process.resource,
        plugin_version=process.manifest.version,
        state=_state(process),
        explanation=process.explanation,
        host=socket.gethostname(),
        pid=pid or 0,
        isolation=pb.ISOLATION_PER_TENANT if process.cell else pb.ISOLATION_SHARED,
        sandbox=_sandbox(process),
        memory_bytes=memory_of(pid) if pid else 0,
        starts=process.starts,
        crashes=map(_crash, process.crashes),
        calls_in_flight=process.calls_in_flight,
        refused_egress=map(_refusal, process.refused),
    )
    told.state_time.FromDatetime(process.since)
    if process.next_start is not None:
        told.next_start_time.FromDatetime(process.next_start)
    return told


def _state(process: PluginProcess) -> pb.Process.State.ValueType:
    if process.lost:
        return pb.Process.STATE_LOST
    return pb.Process.STATE_DRAINING if process.draining else _STATES[process.state]


def _sandbox(process: PluginProcess) -> pb.Sandbox.ValueType:
    match process.manifest.runtime.WhichOneof("kind"):
        case "container":
            return pb.SANDBOX_CONTAINER
        case "remote":
            return pb.SANDBOX_UNSPECIFIED
        case _:
            return pb.SANDBOX_CONFINED if process.confined else pb.SANDBOX_NONE


def _rollout(rollout: Rollout) -> pb.Rollout:
    told = pb.Rollout(
        name=rollout.name,
        from_version=str(rollout.origin),
        to_version=str(rollout.target),
        state=_STAGES[rollout.stage],
        instances_done=rollout.done,
        instances_total=rollout.total,
        failure=rollout.failure,
    )
    if rollout.observe_until is not None:
        told.observe_until.FromDatetime(rollout.observe_until)
    return told


def _crash(crash: Crash) -> pb.Process.Crash:
    exit_ = crash.report.exit
    told = pb.Process.Crash(
        signal=int(exit_.signal) if exit_ is not None and exit_.signal is not None else 0,
        out_of_memory=crash.out_of_memory,
        output_tail=crash.tail,
        suspect_inputs=crash.suspects,
        reason=crash.report.sentence,
    )
    if exit_ is not None and exit_.code is not None:
        told.exit_code = exit_.code
    told.time.FromDatetime(crash.time)
    return told


def _refusal(refusal: Refusal) -> pb.Process.RefusedEgress:
    told = pb.Process.RefusedEgress(address=refusal.address, reason=refusal.reason, count=refusal.count)
    told.last_time.FromDatetime(refusal.last)
    return told
