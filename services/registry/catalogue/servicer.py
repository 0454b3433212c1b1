from __future__ import annotations

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from services.registry.catalogue.manifests import Found, Refused
from services.registry.host.host import Host
from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import catalogue_pb2 as pb
from tieline.registry.v1 import catalogue_pb2_grpc

# ruff: noqa: N802  the contract's names


class CatalogueServicer(catalogue_pb2_grpc.CatalogueServiceServicer):
    def __init__(self, host: Host) -> None:
        self._problems = host.discovery.problems
        self._found = {found.name: found for found in host.discovery.plugins}

    async def GetPlugin(self, request: pb.GetPluginRequest, _: ServicerContext) -> pb.Plugin:
        (name,) = parse("plugins/*", request.name, "name")
        return _plugin(self._get(name))

    async def ListPlugins(self, request: pb.ListPluginsRequest, _: ServicerContext) -> pb.ListPluginsResponse:
        last = paging.after(request.page_token)
        rest = sorted((one for one in self._found.values() if one.name > last), key=_name)
        page, more = paging.cut(rest, paging.page_size(request.page_size), _name)
        return pb.ListPluginsResponse(plugins=map(_plugin, page), next_page_token=more)

    async def GetPluginVersion(
        self, request: pb.GetPluginVersionRequest, _: ServicerContext
    ) -> pb.PluginVersion:
        name, version = parse("plugins/*/versions/*", request.name, "name")
        found = self._get(name)
        if found.manifest.version != version:
            raise Problem(Code.NOT_FOUND, what=f"version {version} of plugin {name}")
        return pb.PluginVersion(
            name=request.name,
            manifest=found.manifest,
            status=found.manifest.status or Manifest.STATUS_ACTIVE,
            installation=pb.PluginVersion.INSTALLATION_READY,
        )

    async def ListManifestProblems(
        self, request: pb.ListManifestProblemsRequest, _: ServicerContext
    ) -> pb.ListManifestProblemsResponse:
        last = paging.after(request.page_token)
        rest = sorted((problem for problem in self._problems if _file(problem) > last), key=_file)
        page, more = paging.cut(rest, paging.page_size(request.page_size), _file)
        return pb.ListManifestProblemsResponse(manifest_problems=map(_problem, page), next_page_token=more)

    def _get(self, name: str) -> Found:
        found = self._found.get(name)
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"plugin {name}")
        return found


def _file(problem: Refused) -> str:
    return str(problem.file)


def _problem(refused: Refused) -> pb.ManifestProblem:
    diagnostic = Diagnostic(
        severity=Diagnostic.SEVERITY_ERROR, pointer=refused.pointer, summary=refused.why[:256]
    )
    return pb.ManifestProblem(file=_file(refused), line=refused.line, diagnostic=diagnostic)


def _name(found: Found) -> str:
    return found.name


def _plugin(found: Found) -> pb.Plugin:
    manifest = found.manifest
    active = manifest.status in (Manifest.STATUS_ACTIVE, Manifest.STATUS_UNSPECIFIED)
    return pb.Plugin(
        name=f"plugins/{manifest.name}",
        title=manifest.title,
        default_version=manifest.version if active else "",
        versions=[manifest.version],
    )
