"""`tieline plugin`: which external services can be connected, and how the processes that do it are."""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from cli import joining
from cli.client import Client, client
from cli.options import add_paging, span
from cli.output import document, show, show_list
from foundation.errors import Code, Problem
from tieline.plugin.v1.manifest_pb2 import Manifest
from tieline.registry.v1 import catalogue_pb2 as catalogue
from tieline.registry.v1 import catalogue_pb2_grpc, processes_pb2_grpc
from tieline.registry.v1 import processes_pb2 as processes
from tieline.registry.v1.processes_pb2 import Process, Rollout, Sandbox

PAGE = 1000


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)

    def on_one(name: str, what: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=what)
        action.add_argument("id", help="the plugin")
        return action

    add_paging(actions.add_parser("list", help="show all"))
    on_one("show", "show one: its versions, its processes, and why they died")
    add_paging(actions.add_parser("problems", help="show the manifests that were refused, and why"))
    actions.add_parser("rescan", help="look through the plugin directories now, and try again what failed")
    on_one("restart", "end its processes gently and start them anew")
    on_one("release", "take its processes out of quarantine")
    upgrade = on_one("upgrade", "have another version serve; it goes back by itself if that one is unwell")
    upgrade.add_argument("--to", required=True, metavar="VERSION", help="which version")
    upgrade.add_argument("--observe", type=span, metavar="SPAN", help="how long to watch it (default 5m)")
    rollout = on_one("rollout", "show how an upgrade goes, or take it back")
    rollout.add_argument("rollout", help="the last part of its name, as `upgrade` shows it")
    rollout.add_argument("--cancel", action="store_true", help="return to the version before")
    joining.arguments(on_one("join-token", "let in a process of it that runs elsewhere, once"))
    status = on_one("status", "decide whether a version may be chosen")
    status.add_argument("version", help="which version")
    status.add_argument("status", choices=["active", "inactive", "deprecated", "manifest"])


async def plugin(options: argparse.Namespace) -> None:
    async with client(options) as installation:
        await _ACTIONS[options.action](installation, options)


async def _list(installation: Client, options: argparse.Namespace) -> None:
    stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    page = await stub.ListPlugins(
        catalogue.ListPluginsRequest(page_size=options.limit, page_token=options.page_token)
    )
    show_list(options, page.plugins, map(_line, page.plugins), page.next_page_token)


async def _show(installation: Client, options: argparse.Namespace) -> None:
    name = f"plugins/{options.id}"
    stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    one = await stub.GetPlugin(catalogue.GetPluginRequest(name=name))
    versions = await stub.ListPluginVersions(catalogue.ListPluginVersionsRequest(parent=name, page_size=PAGE))
    running = await processes_of(installation, name)
    if options.json:
        told = document(one) | {
            "plugin_versions": [document(version) for version in versions.plugin_versions],
            "processes": [document(process) for process in running],
        }
        print(json.dumps(told, indent=1))
        return
    print(_line(one))
    for version in versions.plugin_versions:
        print("\n".join(_about_version(version)))
    for process in running:
        print("\n".join(_about_process(process)))


async def _problems(installation: Client, options: argparse.Namespace) -> None:
    stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    page = await stub.ListManifestProblems(
        catalogue.ListManifestProblemsRequest(page_size=options.limit, page_token=options.page_token)
    )
    show_list(
        options, page.manifest_problems, map(problem_line, page.manifest_problems), page.next_page_token
    )


async def _rescan(installation: Client, options: argparse.Namespace) -> None:
    stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    found = await stub.RescanCatalogue(catalogue.RescanCatalogueRequest())
    lines = [*(f"added {name}" for name in found.added), *(f"removed {name}" for name in found.removed)]
    if found.problems:
        lines.append(f"{found.problems} manifests are refused: see `tieline plugin problems`")
    show(options, found, "\n".join(lines or ["nothing new"]))


async def _restart(installation: Client, options: argparse.Namespace) -> None:
    stub = processes_pb2_grpc.ProcessServiceStub(installation.registry)

    async def restart(name: str) -> Process:
        request = processes.RestartProcessRequest(name=name, request_id=str(uuid.uuid4()))
        return await stub.RestartProcess(request, timeout=60.0)

    await _each(installation, options, restart)


async def _release(installation: Client, options: argparse.Namespace) -> None:
    stub = processes_pb2_grpc.ProcessServiceStub(installation.registry)

    async def release(name: str) -> Process:
        return await stub.ReleaseProcess(processes.ReleaseProcessRequest(name=name))

    await _each(installation, options, release)


async def _each(
    installation: Client, options: argparse.Namespace, act: Callable[[str], Awaitable[Process]]
) -> None:
    running = await processes_of(installation, f"plugins/{options.id}")
    if not running:
        raise Problem(Code.NOT_FOUND, what=f"process of plugin {options.id}")
    acted = [await act(process.name) for process in running]
    show_list(options, acted, [_process_line(process) for process in acted])


async def _upgrade(installation: Client, options: argparse.Namespace) -> None:
    stub = processes_pb2_grpc.ProcessServiceStub(installation.registry)
    request = processes.UpgradePluginRequest(
        name=f"plugins/{options.id}", to_version=options.to, observation=options.observe
    )
    begun = await stub.UpgradePlugin(request)
    show(options, begun, _rollout_line(begun))


async def _rollout(installation: Client, options: argparse.Namespace) -> None:
    stub = processes_pb2_grpc.ProcessServiceStub(installation.registry)
    name = f"plugins/{options.id}/rollouts/{options.rollout}"
    if options.cancel:
        found = await stub.CancelRollout(processes.CancelRolloutRequest(name=name))
    else:
        found = await stub.GetRollout(processes.GetRolloutRequest(name=name))
    show(options, found, _rollout_line(found))


async def _status(installation: Client, options: argparse.Namespace) -> None:
    stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
    name = f"plugins/{options.id}/versions/{options.version}"
    version = await stub.GetPluginVersion(catalogue.GetPluginVersionRequest(name=name))
    chosen = "unspecified" if options.status == "manifest" else options.status
    request = catalogue.UpdatePluginVersionRequest(plugin_version=version)
    request.plugin_version.status = Manifest.Status.Value(f"STATUS_{chosen.upper()}")
    request.update_mask.paths.append("status")
    changed = await stub.UpdatePluginVersion(request)
    show(options, changed, "\n".join(_about_version(changed)).strip())


async def processes_of(installation: Client, parent: str) -> Sequence[Process]:
    stub = processes_pb2_grpc.ProcessServiceStub(installation.registry)
    page = await stub.ListProcesses(processes.ListProcessesRequest(parent=parent, page_size=PAGE))
    return page.processes


def problem_line(problem: catalogue.ManifestProblem) -> str:
    place = f"{problem.diagnostic.pointer}: " if problem.diagnostic.pointer else ""
    line = f":{problem.line}" if problem.line else ""
    return f"{problem.file}{line}: {place}{problem.diagnostic.summary}"


def _line(one: catalogue.Plugin) -> str:
    more = [version for version in one.versions if version != one.default_version]
    beside = f"  (also {', '.join(more)})" if more else ""
    return f"{one.name:<40} {one.default_version or 'none serves':<12} {one.title}{beside}"


def _about_version(version: catalogue.PluginVersion) -> Iterator[str]:
    status = Manifest.Status.Name(version.status).removeprefix("STATUS_").lower()
    state = catalogue.PluginVersion.Installation.Name(version.installation)
    installed = state.removeprefix("INSTALLATION_").lower()
    yield f"  version {version.name.rpartition('/')[2]:<12} {status:<11} installation {installed}"
    if version.failure.message:
        yield f"    {version.failure.message}"


def _process_line(process: Process) -> str:
    state = Process.State.Name(process.state).removeprefix("STATE_").lower()
    return f"  process {process.name.rpartition('/')[2]:<12} {state:<11} {process.explanation}"


def _about_process(process: Process) -> Iterator[str]:
    yield _process_line(process)
    sandbox = Sandbox.Name(process.sandbox).removeprefix("SANDBOX_").lower()
    held = f"{process.memory_bytes // 1024**2} MiB, " if process.memory_bytes else ""
    yield (
        f"    version {process.plugin_version}, on {process.host}, "
        f"{f'pid {process.pid}, ' if process.pid else ''}{held}"
        f"started {process.starts} times, sandbox {sandbox}"
    )
    if process.HasField("next_start_time"):
        yield f"    starts again {process.next_start_time.ToJsonString()}"
    for crash in process.crashes:
        yield f"    crashed {crash.time.ToJsonString()}: {_cause(crash)}"
        yield from (f"      | {line}" for line in crash.output_tail.splitlines()[-8:])
        if crash.suspect_inputs:
            yield f"      in flight: {', '.join(crash.suspect_inputs[:5])}"
    for refused in process.refused_egress:
        yield f"    may not reach {refused.address}: {refused.reason} ({refused.count} times)"


def _cause(crash: Process.Crash) -> str:
    causes = []
    if crash.out_of_memory:
        causes.append("out of memory")
    if crash.signal:
        causes.append(f"signal {crash.signal}")
    if crash.HasField("exit_code"):
        causes.append(f"exit code {crash.exit_code}")
    return crash.reason or ", ".join(causes) or "it was never ready"


def _rollout_line(rollout: Rollout) -> str:
    state = Rollout.State.Name(rollout.state).removeprefix("STATE_").lower().replace("_", " ")
    why = f": {rollout.failure.message}" if rollout.failure.message else ""
    moved = f"{rollout.instances_done} of {rollout.instances_total} instances"
    return f"{rollout.name} {rollout.from_version} to {rollout.to_version}: {state}, {moved}{why}"


_ACTIONS: Mapping[str, Callable[[Client, argparse.Namespace], Awaitable[None]]] = {
    "list": _list,
    "show": _show,
    "problems": _problems,
    "rescan": _rescan,
    "restart": _restart,
    "release": _release,
    "join-token": joining.join_token,
    "upgrade": _upgrade,
    "rollout": _rollout,
    "status": _status,
}
