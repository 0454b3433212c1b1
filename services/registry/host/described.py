"""What is told of processes and rollouts, as the contract has it."""

from __future__ import annotations

from foundation.process.supervised import State
from services.registry.egress.refusals import Refusal
from services.registry.host.crashes import Crash
from services.registry.host.process import PluginProcess
from services.registry.host.rollouts import Rollout, Stage
from services.registry.host.watchdog import memory_of
from tieline.registry.v1 import processes_pb2 as pb

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


def described(process: PluginProcess, name: str, host: str) -> pb.Process:
    pid = process.pid
    told = pb.Process(
        name=name,
        plugin_version=process.manifest.version,
        state=_state(process),
        explanation=process.explanation,
        host=host,
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


def told_rollout(rollout: Rollout) -> pb.Rollout:
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
