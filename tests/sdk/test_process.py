"""A plugin process as its host meets it: over its socket, by the contract alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foundation.process.testing import until
from foundation.rpc import options
from services.registry.broker.failures import of_call
from tests.services.registry.plugins import make_plugin
from tieline.common.v1.failure_pb2 import CredentialVersion, FailureKind
from tieline.plugin.v1 import instance_pb2 as pb
from tieline.plugin.v1 import plugin_pb2, plugin_pb2_grpc, transform_pb2
from tieline.plugin.v1.execute_pb2 import ExecuteRequest
from tieline.sdk import _grpc
from tieline.sdk.manifest import read_manifest

NONCE = bytes(range(32))


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    address: str
    folder: Path
    stub: Any
    channel: grpc.aio.Channel


@asynccontextmanager
async def running(tmp_path: Path, short_dir: Path) -> AsyncIterator[Running]:
    folder, socket = make_plugin(tmp_path, "one"), short_dir / "s"
    environment = {
        "PATH": os.environ["PATH"],
        "TIELINE_PLUGIN_ADDRESS": f"unix://{socket}",
        "TIELINE_PLUGIN_NONCE": base64.urlsafe_b64encode(NONCE).decode().rstrip("="),
    }
    with start(folder, environment) as process:
        try:
            await until(socket.exists)
            async with grpc.aio.insecure_channel(f"unix://{socket}", options.CLIENT) as channel:
                async with asyncio.timeout(30):
                    await channel.channel_ready()  # the socket is there a moment before anybody listens
                stub = plugin_pb2_grpc.PluginServiceStub(channel)
                yield Running(process, f"unix://{socket}", folder, stub, channel)
        finally:
            process.kill()


def start(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "plugin"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.fixture
async def plugin(tmp_path: Path, short_dir: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, short_dir) as plugin:
        yield plugin


async def failed(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    failure = of_call(error.value)
    return error.value.code(), FailureKind.Name(failure.kind)[13:], failure.reason


async def test_it_says_what_its_manifest_says_and_proves_its_launch(plugin: Running) -> None:
    answer = await plugin.stub.Describe(plugin_pb2.DescribeRequest(), timeout=30)
    assert answer.manifest == read_manifest(plugin.folder / "plugin.toml")
    assert answer.launch_proof == hmac.digest(NONCE, plugin.address.encode(), hashlib.sha256)
    assert answer.sdk.startswith("tieline-python ")
    health: Any = health_pb2_grpc.HealthStub(plugin.channel)
    state = await health.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert state.status == health_pb2.HealthCheckResponse.SERVING


async def test_every_call_needs_a_deadline(plugin: Running) -> None:
    said = await failed(plugin.stub.Describe(plugin_pb2.DescribeRequest()))
    assert said == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", "DEADLINE_REQUIRED")


async def test_what_it_does_not_do_is_unimplemented(plugin: Running) -> None:
    said = await failed(plugin.stub.Execute(ExecuteRequest(), timeout=30))
    assert said[:2] == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")


async def test_it_answers_only_for_exactly_what_it_holds(plugin: Running) -> None:
    stub = plugin.stub

    def check(revision: int, *credentials: CredentialVersion) -> Any:
        context = pb.InstanceContext(instance_id="i", config_revision=revision, credentials=credentials)
        return stub.HealthCheck(pb.HealthCheckRequest(context=context), timeout=30)

    precondition = grpc.StatusCode.FAILED_PRECONDITION
    assert await failed(check(1)) == (precondition, "NOT_PREPARED", "INSTANCE_NOT_INITIALIZED")
    for _ in range(2):
        await stub.Initialize(pb.InitializeRequest(instance_id="i", config_revision=1), timeout=30)
    assert (await check(1)).state == pb.HealthCheckResponse.STATE_OK
    assert await failed(check(2)) == (precondition, "NOT_PREPARED", "REVISION_MISMATCH")
    wanted = CredentialVersion(slot="api", version=2)
    assert await failed(check(1, wanted)) == (precondition, "NOT_PREPARED", "CREDENTIAL_MISSING")

    def give(version: int) -> Any:
        material = pb.CredentialMaterial(
            version=CredentialVersion(slot="api", version=version), fields={"token": b"canary"}
        )
        return stub.Authenticate(pb.AuthenticateRequest(instance_id="i", credential=material), timeout=30)

    assert (await give(2)).held_version == 2
    assert (await check(1, wanted)).state == pb.HealthCheckResponse.STATE_OK
    stale = await give(1)
    assert (stale.held_version, stale.stale) == (2, True)
    assert (await give(3)).held_version == 3
    await check(1, wanted)  # a newer one will do
    await stub.Initialize(pb.InitializeRequest(instance_id="i", config_revision=2), timeout=30)
    await check(2, wanted)  # new settings, the same credentials
    withdrawn = CredentialVersion(slot="api", version=3)
    gone = await stub.Authenticate(pb.AuthenticateRequest(instance_id="i", withdrawn=withdrawn), timeout=30)
    assert gone.held_version == 0
    assert (await failed(check(2, wanted)))[2] == "CREDENTIAL_MISSING"
    await stub.Release(pb.ReleaseRequest(instance_id="i"), timeout=30)
    await stub.Release(pb.ReleaseRequest(instance_id="never"), timeout=30)
    assert (await failed(check(2)))[2] == "INSTANCE_NOT_INITIALIZED"


async def test_settings_that_cannot_work_are_told_and_not_taken(plugin: Running) -> None:
    bad = pb.InitializeRequest(instance_id="i", config_revision=1, settings=b'{"word": "forbidden"}')
    said = await failed(plugin.stub.Initialize(bad, timeout=30))
    assert said == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_CONFIG", "SETTINGS_REFUSED")
    bad.validate_only = True
    looked = await plugin.stub.Initialize(bad, timeout=30)
    assert [(item.pointer, item.summary) for item in looked.diagnostics] == [
        ("/word", "that word is forbidden")
    ]
    not_json = pb.InitializeRequest(instance_id="i", config_revision=1, settings=b"[")
    assert (await failed(plugin.stub.Initialize(not_json, timeout=30)))[2] == "SETTINGS_NOT_JSON"


async def test_unknown_groups_fail_and_their_neighbours_do_not(plugin: Running) -> None:
    await plugin.stub.Initialize(pb.InitializeRequest(instance_id="i", config_revision=1), timeout=30)
    item = transform_pb2.TransformInput(input_id="1", payload=b'{"say": "hello"}')
    groups = [
        transform_pb2.TransformGroup(
            context=pb.InstanceContext(instance_id=name, config_revision=revision), inputs=[item]
        )
        for name, revision in (("i", 1), ("i", 2), ("j", 1))
    ]
    answer = await plugin.stub.TransformData(transform_pb2.TransformDataRequest(groups=groups), timeout=30)
    assert [result.failure.reason for result in answer.results] == [
        "",
        "REVISION_MISMATCH",
        "INSTANCE_NOT_INITIALIZED",
    ]
    assert len(answer.results[0].outcomes) == 1


async def test_shutdown_ends_it_with_0_and_nothing_on_stdout(plugin: Running) -> None:
    await plugin.stub.Shutdown(plugin_pb2.ShutdownRequest(), timeout=30)
    assert plugin.process.wait(30) == 0
    assert plugin.process.stdout is not None
    assert plugin.process.stdout.read() == b""


def test_both_sides_agree_on_the_transport() -> None:
    assert sorted(_grpc.OPTIONS) == sorted(options.SERVER)


def test_a_plugin_imports_little() -> None:
    """Every plugin pays for it at each start, in time and memory."""
    code = "import sys, tieline.sdk, tieline.sdk._grpc; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "sqlalchemy",
        "foundation",
        "services",
        "msgspec",
        "structlog",
        "opentelemetry",
        "httpx",
        "cryptography",
    }
    assert not heavy & set(said.stdout.split())


def test_without_a_host_it_says_so() -> None:
    code = "from tieline.sdk import serve; serve(None)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={})
    assert said.returncode == 1
    assert said.stderr.strip() == "a plugin is started by Tieline, which sets TIELINE_PLUGIN_ADDRESS"
