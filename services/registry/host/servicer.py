from __future__ import annotations

from datetime import timedelta

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from services.registry.catalogue.versions import Version
from services.registry.host.rollouts import LONGEST_OBSERVATION, OBSERVATION
from services.registry.recording import Change, Recorder
from services.registry.replicas.fleet import Fleet
from tieline.registry.v1 import processes_pb2 as pb
from tieline.registry.v1 import processes_pb2_grpc

# ruff: noqa: N802  the contract's names


class ProcessServicer(processes_pb2_grpc.ProcessServiceServicer):
    def __init__(self, fleet: Fleet, recorder: Recorder) -> None:
        self._fleet, self._recorder = fleet, recorder

    async def GetProcess(self, request: pb.GetProcessRequest, _: ServicerContext) -> pb.Process:
        parse("plugins/*/processes/*", request.name, "name")
        return await self._fleet.process(request.name)

    async def ListProcesses(
        self, request: pb.ListProcessesRequest, _: ServicerContext
    ) -> pb.ListProcessesResponse:
        (plugin,) = parse("plugins/*", request.parent, "parent")
        last = paging.after(request.page_token)
        below = "plugins/" if plugin == "-" else f"plugins/{plugin}/"
        every = await self._fleet.processes()
        rest = [one for name, one in sorted(every.items()) if name > last and name.startswith(below)]
        page, more = paging.cut(rest, paging.page_size(request.page_size), lambda one: one.name)
        return pb.ListProcessesResponse(processes=page, next_page_token=more)

    async def RestartProcess(self, request: pb.RestartProcessRequest, _: ServicerContext) -> pb.Process:
        parse("plugins/*/processes/*", request.name, "name")
        found = await self._fleet.process(request.name)
        async with self._recorder.making(Change(action="plugin.restart", resource=found.name)):
            return await self._fleet.restart(found.name, request.request_id)

    async def ReleaseProcess(self, request: pb.ReleaseProcessRequest, _: ServicerContext) -> pb.Process:
        parse("plugins/*/processes/*", request.name, "name")
        found = await self._fleet.process(request.name)
        async with self._recorder.making(Change(action="plugin.release", resource=found.name)):
            return await self._fleet.release(found.name)

    async def UpgradePlugin(self, request: pb.UpgradePluginRequest, _: ServicerContext) -> pb.Rollout:
        (plugin,) = parse("plugins/*", request.name, "name")
        try:
            target = Version.parse(request.to_version)
        except ValueError as error:
            raise Problem(Code.INVALID_ARGUMENT, field="to_version", why=str(error)) from None
        observation = request.observation.ToTimedelta() if request.HasField("observation") else OBSERVATION
        if not timedelta() <= observation <= LONGEST_OBSERVATION:
            raise Problem(Code.INVALID_ARGUMENT, field="observation", why="it may take up to a day")
        change = Change(action="plugin.upgrade", resource=request.name, details={"version": str(target)})
        async with self._recorder.making(change):
            return await self._fleet.upgrade(plugin, target, observation)

    async def GetRollout(self, request: pb.GetRolloutRequest, _: ServicerContext) -> pb.Rollout:
        parse("plugins/*/rollouts/*", request.name, "name")
        return await self._fleet.rollout(request.name)

    async def CancelRollout(self, request: pb.CancelRolloutRequest, _: ServicerContext) -> pb.Rollout:
        parse("plugins/*/rollouts/*", request.name, "name")
        async with self._recorder.making(Change(action="plugin.rollout.cancel", resource=request.name)):
            return await self._fleet.cancel(request.name)
