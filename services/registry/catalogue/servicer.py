from __future__ import annotations

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from services.registry.catalogue.catalogue import Catalogue, Published
from services.registry.catalogue.manifests import Refused
from services.registry.catalogue.versions import Range, Version
from services.registry.host.host import Host
from services.registry.recording import Change, Recorder
from tieline.common.v1.diagnostic_pb2 import Diagnostic
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INTERNAL, Failure
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import catalogue_pb2 as pb
from tieline.registry.v1 import catalogue_pb2_grpc

# ruff: noqa: N802  the contract's names


class CatalogueServicer(catalogue_pb2_grpc.CatalogueServiceServicer):
    def __init__(self, catalogue: Catalogue, host: Host, recorder: Recorder) -> None:
        self._catalogue, self._host, self._recorder = catalogue, host, recorder

    async def GetPlugin(self, request: pb.GetPluginRequest, _: ServicerContext) -> pb.Plugin:
        (name,) = parse("plugins/*", request.name, "name")
        return self._plugin(name)

    async def ListPlugins(self, request: pb.ListPluginsRequest, _: ServicerContext) -> pb.ListPluginsResponse:
        last = paging.after(request.page_token)
        rest = [name for name in self._catalogue.content.names() if name > last]
        page, more = paging.cut(rest, paging.page_size(request.page_size), str)
        return pb.ListPluginsResponse(plugins=map(self._plugin, page), next_page_token=more)

    async def GetPluginVersion(
        self, request: pb.GetPluginVersionRequest, _: ServicerContext
    ) -> pb.PluginVersion:
        return _version(self._published(request.name, "name"))

    async def ListPluginVersions(
        self, request: pb.ListPluginVersionsRequest, _: ServicerContext
    ) -> pb.ListPluginVersionsResponse:
        (name,) = parse("plugins/*", request.parent, "parent")
        versions = self._versions(name)
        last = paging.after(request.page_token)
        names = [str(one.version) for one in versions]
        rest = versions[names.index(last) + 1 if last in names else 0 :]
        page, more = paging.cut(rest, paging.page_size(request.page_size), lambda one: str(one.version))
        return pb.ListPluginVersionsResponse(plugin_versions=map(_version, page), next_page_token=more)

    async def UpdatePluginVersion(
        self, request: pb.UpdatePluginVersionRequest, _: ServicerContext
    ) -> pb.PluginVersion:
        wanted = request.plugin_version
        published = self._published(wanted.name, "plugin_version.name")
        if list(request.update_mask.paths) != ["status"]:
            why = "the status can be changed, and nothing else"
            raise Problem(Code.INVALID_ARGUMENT, field="update_mask", why=why)
        if wanted.status not in Manifest.Status.values():
            raise Problem(Code.INVALID_ARGUMENT, field="plugin_version.status", why="there is no such status")
        etag = wanted.etag or published.entry.etag
        status = Manifest.Status.Name(wanted.status).removeprefix("STATUS_").lower()
        change = Change(action="plugin.status", resource=wanted.name, details={"status": status})
        async with self._recorder.making(change):
            return _version(await self._catalogue.override(published.found.key, wanted.status, etag))

    async def RescanCatalogue(
        self, _request: pb.RescanCatalogueRequest, _: ServicerContext
    ) -> pb.RescanCatalogueResponse:
        added, removed = await self._catalogue.rescan()
        return pb.RescanCatalogueResponse(
            added=sorted(map(_name, added)),
            removed=sorted(map(_name, removed)),
            problems=len(self._catalogue.content.problems),
        )

    async def ListManifestProblems(
        self, request: pb.ListManifestProblemsRequest, _: ServicerContext
    ) -> pb.ListManifestProblemsResponse:
        last = paging.after(request.page_token)
        rest = sorted((one for one in self._catalogue.content.problems if _file(one) > last), key=_file)
        page, more = paging.cut(rest, paging.page_size(request.page_size), _file)
        return pb.ListManifestProblemsResponse(manifest_problems=map(_problem, page), next_page_token=more)

    async def ResolvePlugin(
        self, request: pb.ResolvePluginRequest, _: ServicerContext
    ) -> pb.ResolvePluginResponse:
        (name,) = parse("plugins/*", request.name, "name")
        try:
            range_ = Range.parse(request.version_range)
        except ValueError as error:
            raise Problem(Code.INVALID_ARGUMENT, field="version_range", why=str(error)) from None
        resolution = self._catalogue.content.resolve(name, range_)
        answer = pb.ResolvePluginResponse(
            versions=[f"plugins/{plugin}/versions/{chosen}" for plugin, chosen in resolution.chosen.items()]
        )
        for conflict in resolution.conflicts:
            answer.conflicts.add(
                plugin=f"plugins/{conflict.plugin}",
                constraints=[constraint.sentence for constraint in conflict.constraints],
                available=map(str, conflict.available),
            )
        return answer

    def _plugin(self, name: str) -> pb.Plugin:
        versions = self._versions(name)
        serving = self._host.serving(name)
        newest = self._catalogue.content.newest(name)
        default = serving or (newest.version if newest and newest.startable else None)
        return pb.Plugin(
            name=f"plugins/{name}",
            title=versions[0].manifest.title,
            default_version=str(default) if default else "",
            versions=[str(one.version) for one in versions],
        )

    def _versions(self, name: str) -> list[Published]:
        versions = self._catalogue.content.versions(name)
        if not versions:
            raise Problem(Code.NOT_FOUND, what=f"plugin {name}")
        return versions

    def _published(self, name: str, field: str) -> Published:
        plugin, text = parse("plugins/*/versions/*", name, field)
        try:
            found = self._catalogue.content.published.get((plugin, Version.parse(text)))
        except ValueError:
            found = None
        if found is None:
            raise Problem(Code.NOT_FOUND, what=f"version {text} of plugin {plugin}")
        return found


def _name(published: Published) -> str:
    return f"plugins/{published.name}/versions/{published.version}"


def _version(published: Published) -> pb.PluginVersion:
    version = pb.PluginVersion(
        name=_name(published),
        manifest=published.manifest,
        status=published.status,
        digest=published.digest,
        installation=_installation(published),
        etag=published.entry.etag,
    )
    version.create_time.FromDatetime(published.entry.create_time)
    if published.failure:
        failure = Failure(
            kind=FAILURE_KIND_INTERNAL, reason="NOT_STARTABLE", message=published.failure[:1024]
        )
        version.failure.CopyFrom(failure)
    return version


def _installation(published: Published) -> pb.PluginVersion.Installation.ValueType:
    if published.failure:
        return pb.PluginVersion.INSTALLATION_FAILED
    if published.environment is None:
        return pb.PluginVersion.INSTALLATION_PENDING
    return pb.PluginVersion.INSTALLATION_READY


def _file(problem: Refused) -> str:
    return str(problem.file)


def _problem(refused: Refused) -> pb.ManifestProblem:
    diagnostic = Diagnostic(
        severity=Diagnostic.SEVERITY_ERROR, pointer=refused.pointer, summary=refused.why[:256]
    )
    return pb.ManifestProblem(file=_file(refused), line=refused.line, diagnostic=diagnostic)
