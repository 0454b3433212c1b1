"""A plugin by hand, on the bare contract: it does what the settings' `word` and a call's arguments say, and keeps a log.

Copied into a plugin's folder by `raw.py`, which says where `calls.jsonl` is: what it was asked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_status import rpc_status

from tieline.common.v1.failure_pb2 import CredentialVersion, Failure, FailureKind, ThrottleScope
from tieline.plugin.v1 import (
    execute_pb2,
    fetch_pb2,
    instance_pb2,
    plugin_pb2,
    plugin_pb2_grpc,
    transform_pb2,
)
from tieline.sdk.manifest import read_manifest

# ruff: noqa: N802  the contract's names
K = FailureKind
CODES = {
    K.FAILURE_KIND_TRANSIENT: code_pb2.UNAVAILABLE,
    K.FAILURE_KIND_RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
    K.FAILURE_KIND_AUTH_FAILED: code_pb2.UNAUTHENTICATED,
    K.FAILURE_KIND_NOT_PREPARED: code_pb2.FAILED_PRECONDITION,
}


class Plugin(plugin_pb2_grpc.PluginServiceServicer):
    def __init__(self) -> None:
        self.settings: dict[str, dict[str, Any]] = {}
        self.held: dict[tuple[str, str, str], tuple[int, bytes]] = {}
        self.counts: dict[str, int] = {}

    def note(self, what: str, **more: Any) -> int:
        with Path("calls.jsonl").open("a") as file:
            file.write(json.dumps({"call": what, "pid": os.getpid(), **more}) + "\n")
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]

    async def Describe(self, _: Any, __: Any) -> plugin_pb2.DescribeResponse:
        address = os.environ["TIELINE_PLUGIN_ADDRESS"].encode()
        proof = hmac.digest(NONCE, address, hashlib.sha256)
        return plugin_pb2.DescribeResponse(
            manifest=read_manifest(Path("plugin.toml")), launch_proof=proof, sdk="by hand"
        )

    async def Initialize(self, request: Any, _: Any) -> instance_pb2.InitializeResponse:
        self.note("Initialize", instance=request.instance_id, revision=request.config_revision)
        settings = json.loads(request.settings)
        if settings.get("word") == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        self.settings[request.instance_id] = settings | {"revision": request.config_revision}
        return instance_pb2.InitializeResponse()

    async def Authenticate(self, request: Any, context: Any) -> instance_pb2.AuthenticateResponse:
        if request.instance_id not in self.settings:
            await refuse(
                context, Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="INSTANCE_NOT_INITIALIZED")
            )
        if request.HasField("withdrawn"):
            gone = request.withdrawn
            self.note("withdrawn", slot=gone.slot, entry=gone.entry, version=gone.version)
            self.held.pop((request.instance_id, gone.slot, gone.entry), None)
            return instance_pb2.AuthenticateResponse()
        given = request.credential
        place = (request.instance_id, given.version.slot, given.version.entry)
        self.note(
            "Authenticate",
            slot=given.version.slot,
            entry=given.version.entry,
            version=given.version.version,
            fields=sorted(given.fields),
        )
        while given.fields["token"] == b"gated" and not Path("calls.jsonl").with_name("gate").exists():
            await asyncio.sleep(0.01)
        held = self.held.get(place)
        if held is not None and held[0] > given.version.version:
            return instance_pb2.AuthenticateResponse(held_version=held[0], stale=True)
        self.held[place] = (given.version.version, given.fields["token"])
        answer = instance_pb2.AuthenticateResponse(held_version=given.version.version)
        if request.probe:
            valid = given.fields["token"] != b"refused"
            answer.probe.CopyFrom(
                instance_pb2.AuthenticateResponse.Probe(
                    valid=valid, principal="robot", missing_scopes=[] if valid else ["write"]
                )
            )
        return answer

    async def HealthCheck(self, request: Any, context: Any) -> instance_pb2.HealthCheckResponse:
        """Answers the tokens that it would use, unless the settings say otherwise."""
        await self.demand(request.context, context)
        word = self.settings[request.context.instance_id].get("word", "")
        count = self.note("HealthCheck", instance=request.context.instance_id)
        used = [
            (slot, entry, version, token)
            for (instance, slot, entry), (version, token) in self.held.items()
            if instance == request.context.instance_id
        ]
        for slot, entry, version, token in used:
            if token == b"refused":
                named = CredentialVersion(slot=slot, entry=entry, version=version)
                await refuse(
                    context, Failure(kind=K.FAILURE_KIND_AUTH_FAILED, reason="BAD", credential_version=named)
                )
        if word == "defect" or (word == "defect once" and count == 1):
            await refuse(context, Failure(kind=K.FAILURE_KIND_INTERNAL, reason="DEFECT"))
        if word == "odd":
            await refuse(context, odd())
        if word == "quote":
            said = f"GET https://x.example/?token={used[0][3].decode()} failed"
            await refuse(context, Failure(kind=K.FAILURE_KIND_TRANSIENT, reason="DOWN", message=said))
        if word == "down":
            await refuse(context, Failure(kind=K.FAILURE_KIND_TRANSIENT, reason="DOWN"))
        if word.startswith("limited") and count == 1:
            failure = Failure(kind=K.FAILURE_KIND_RATE_LIMITED, reason="SLOW_DOWN")
            failure.retry_after.FromMilliseconds(int(word.partition(" ")[2]))
            failure.throttle_scope.bucket = "search"
            failure.throttle_scope.reach = ThrottleScope.REACH_INSTANCE
            await refuse(context, failure)
        if word == "forget once" and count == 1:
            self.settings.clear()
            self.held.clear()
            await refuse(
                context, Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="INSTANCE_NOT_INITIALIZED")
            )
        answer = instance_pb2.HealthCheckResponse(state=instance_pb2.HealthCheckResponse.STATE_OK)
        for slot, entry, version, token in sorted(used):
            answer.findings.add(name=f"{slot}/{entry}/{version}={token.decode()}")
        return answer

    async def Execute(self, request: Any, context: Any) -> execute_pb2.ExecuteResponse:
        await self.demand(request.context, context)
        self.note("Execute", action=request.action)
        match request.action:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                await asyncio.sleep(3600)
            case "bare":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "who knows")
            case "none":
                failure = Failure(kind=K.FAILURE_KIND_TRANSIENT, reason="NOT_SENT")
                failure.effect = 1  # type: ignore[assignment]
                await refuse(context, failure)
            case "unsaid":
                await refuse(context, Failure(kind=K.FAILURE_KIND_INTERNAL, reason="DEFECT"))
        return execute_pb2.ExecuteResponse(output=b"{}")

    async def FetchData(self, request: Any, context: Any) -> AsyncIterator[fetch_pb2.FetchDataResponse]:
        await self.demand(request.context, context)
        self.note("FetchData", stream=request.stream)
        for number in range(3):
            frame = fetch_pb2.FetchDataResponse()
            frame.records.records.add(key=str(number))
            yield frame
            if request.stream == "cut" and number == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "who knows")
            while request.stream == "endless":
                yield frame
                await asyncio.sleep(0.01)
        yield fetch_pb2.FetchDataResponse(end=fetch_pb2.FetchEnd())

    async def TransformData(self, request: Any, context: Any) -> transform_pb2.TransformDataResponse:
        items = [item for group in request.groups for item in group.inputs]
        self.note("TransformData", inputs=len(items), ids=[item.input_id for item in items][:3])
        words = [json.loads(item.payload).get("say", "") for item in items]
        if "die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "stick" in words:
            time.sleep(3600)  # noqa: ASYNC251  that is the point
        if "hang" in words:
            await asyncio.sleep(3600)
        if "defect" in words or "odd" in words:
            await refuse(
                context, odd() if "odd" in words else Failure(kind=K.FAILURE_KIND_INTERNAL, reason="DEFECT")
            )
        answer = transform_pb2.TransformDataResponse()
        for group in request.groups:
            result = answer.results.add(instance_id=group.context.instance_id)
            held = self.settings.get(group.context.instance_id)
            if held is None or held["revision"] != group.context.config_revision:
                result.failure.CopyFrom(
                    Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="INSTANCE_NOT_INITIALIZED")
                )
                continue
            for item in group.inputs:
                outcome = result.outcomes.add(input_id=item.input_id)
                outcome.skipped.reason = "SEEN"
            spoil(result, words)
        return answer

    async def demand(self, wanted: Any, context: Any) -> None:
        held = self.settings.get(wanted.instance_id)
        if held is None or held["revision"] != wanted.config_revision:
            await refuse(
                context, Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="INSTANCE_NOT_INITIALIZED")
            )
        for one in wanted.credentials:
            if self.held.get((wanted.instance_id, one.slot, one.entry), (0, b""))[0] < one.version:
                await refuse(context, Failure(kind=K.FAILURE_KIND_NOT_PREPARED, reason="CREDENTIAL_MISSING"))


def spoil(result: transform_pb2.TransformGroupResult, words: list[str]) -> None:
    """What a word asks for, in place of an honest answer."""
    match words:
        case ["odd outcome"]:
            result.outcomes[0].failure.CopyFrom(odd())
        case ["odd group"]:
            result.failure.CopyFrom(odd())
        case ["twice"]:
            result.outcomes.add(input_id=result.outcomes[0].input_id).skipped.reason = "SEEN"
        case ["another"]:
            result.instance_id = "instance-raw-99"


def odd() -> Failure:
    """Nothing in it is as the contract has it."""
    failure = Failure(kind=99, reason="R" * 200, message="\x1b[2J\x00" + "m" * 3000)  # type: ignore[arg-type]
    failure.retry_after.seconds = 2**62
    failure.throttle_scope.bucket = "b" * 400
    failure.upstream.host = "h" * 400
    return failure


async def refuse(context: Any, failure: Failure) -> None:
    packed = AnyMessage()
    packed.Pack(failure)
    status = status_pb2.Status(
        code=CODES.get(failure.kind, code_pb2.INTERNAL), message="no", details=[packed]
    )
    await context.abort_with_status(rpc_status.to_status(status))


async def main() -> None:
    server = grpc.aio.server()
    plugin_pb2_grpc.add_PluginServiceServicer_to_server(Plugin(), server)  # type: ignore[abstract]
    state = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    server.add_insecure_port(os.environ["TIELINE_PLUGIN_ADDRESS"])
    await server.start()
    await state.set("", health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0.1)


if __name__ == "__main__":
    NONCE = base64.urlsafe_b64decode(os.environ["TIELINE_PLUGIN_NONCE"] + "==")
    asyncio.run(main())
