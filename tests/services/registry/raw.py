"""The plugin by hand (`raw_plugin.py`), a vault that lends to it, and words for what tests ask of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.identity import TokenVerifier
from foundation.rpc import Connection, RpcServer, connect
from foundation.settings import Address
from foundation.telemetry import Metrics
from services.registry.broker.operations import Operation, Reach
from services.registry.broker.serving import Binding, Served
from tests.services.registry.conftest import OURSELVES, OneKey, token_for
from tests.services.registry.plugins import make_plugin
from tieline.common.v1.credential_pb2 import CREDENTIAL_KIND_BEARER_TOKEN
from tieline.common.v1.failure_pb2 import FAILURE_KIND_PERMISSION_DENIED, Failure
from tieline.credentials.v1 import leases_pb2, leases_pb2_grpc
from tieline.plugin.v1.execute_pb2 import ExecuteRequest
from tieline.plugin.v1.fetch_pb2 import FetchDataRequest
from tieline.plugin.v1.instance_pb2 import HealthCheckRequest, HealthCheckResponse
from tieline.registry.v1.broker_pb2 import ConnectionRef

# ruff: noqa: N802  the contract's names

SLOT = """
[[credential_slots]]
name = "api"
choices = [{ kind = "bearer_token", fields = ["token"] }]
max_entries = 3
"""
LOOK = Operation(name="HealthCheck", slot="api")
Advice = leases_pb2.ReportRefusalResponse


def make_raw(below: Path, name: str = "raw", rest: str = "") -> Path:
    """Below `plugins` of this folder; the log is kept beside, because a plugin whose files change is another one."""
    folder = make_plugin(below / "plugins", name, rest=SLOT + rest)
    code = Path(__file__).with_name("raw_plugin.py").read_text()
    (folder / "plugin.py").write_text(code.replace('"calls.jsonl"', repr(str(below / "calls.jsonl"))))
    return below


def connected(number: int = 1, word: str = "", *entries: str, revision: int = 1) -> Served:
    """A connection of the plugin by hand, with a credential in each of these entries."""
    return Served(
        connection=f"tenants/acme/connections/raw-{number}",
        plugin="raw",
        instance=f"instance-raw-{number}",
        revision=revision,
        settings=json.dumps({"word": word}).encode(),
        bindings=(Binding("webhook"), *(Binding("api", entry) for entry in entries)),
    )


def ref(served: Served) -> ConnectionRef:
    return ConnectionRef(connection=served.connection)


def look(reach: Reach) -> Any:
    return reach.stub.HealthCheck(HealthCheckRequest(context=reach.context), **reach.options)


def act(action: str) -> Any:
    def ask(reach: Reach) -> Any:
        request = ExecuteRequest(context=reach.context, action=action, idempotency_key="k")
        return reach.stub.Execute(request, **reach.options)

    return ask


def fetch(stream: str) -> Any:
    def ask(reach: Reach) -> Any:
        return reach.stub.FetchData(FetchDataRequest(context=reach.context, stream=stream), **reach.options)

    return ask


def found(answer: HealthCheckResponse) -> list[str]:
    return [finding.name for finding in answer.findings]


def calls(below: Path, what: str = "") -> list[dict[str, Any]]:
    """What the plugin was asked, in order."""
    file = below / "calls.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if not what or line["call"] == what]


@dataclass
class Lender(leases_pb2_grpc.LeaseServiceServicer):
    """The vault's leases: `secrets` are lent, and told of when `tell` says so."""

    secrets: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    """Version and token, by connection and entry."""
    life: timedelta = timedelta(minutes=10)
    asked: list[leases_pb2.AcquireLeasesRequest] = field(default_factory=list)
    reported: list[leases_pb2.ReportRefusalRequest] = field(default_factory=list)
    advice: list[leases_pb2.ReportRefusalResponse] = field(default_factory=list)
    renewed: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    """What the vault has after a refusal was reported."""
    told: leases_pb2.WatchLeasesResponse = field(default_factory=leases_pb2.WatchLeasesResponse)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(
        self, state: leases_pb2.Lease.State.ValueType, served: Served, *versions: int, entry: str = "a"
    ) -> None:
        self.told = leases_pb2.WatchLeasesResponse(
            leases=[
                leases_pb2.Lease(name=_lease(served.connection, entry, one), state=state) for one in versions
            ]
        )
        self.changed.set()

    async def AcquireLeases(self, request: Any, _: Any) -> leases_pb2.AcquireLeasesResponse:
        self.asked.append(request)
        answer = leases_pb2.AcquireLeasesResponse()
        for one in request.requests:
            outcome = answer.outcomes.add()
            if (one.subject, one.entry) not in self.secrets:
                why = Failure(kind=FAILURE_KIND_PERMISSION_DENIED, reason="GRANT_MISSING", message="no grant")
                outcome.failure.CopyFrom(why)
                continue
            version, token = self.secrets[one.subject, one.entry]
            secret = outcome.secret
            secret.kind = CREDENTIAL_KIND_BEARER_TOKEN
            secret.fields["token"] = token
            secret.fields["not declared"] = b"never to be seen"
            secret.lease.name = _lease(one.subject, one.entry, version)
            secret.lease.version.version = version
            secret.lease.expire_time.FromDatetime(datetime.now(UTC) + self.life)
        return answer

    async def WatchLeases(self, _: Any, __: Any) -> AsyncIterator[leases_pb2.WatchLeasesResponse]:
        while True:
            await self.changed.wait()
            self.changed.clear()
            yield self.told

    async def ReportRefusal(self, request: Any, _: Any) -> leases_pb2.ReportRefusalResponse:
        self.reported.append(request)
        self.secrets.update(self.renewed)
        return self.advice.pop(0)


@dataclass
class Vault:
    lender: Lender
    server: RpcServer
    channel: Connection


@asynccontextmanager
async def lending() -> AsyncIterator[Vault]:
    lender = Lender()  # type: ignore[abstract]  # it lends, and no more
    server = RpcServer(
        Address("127.0.0.1", 0),
        authenticator=TokenVerifier(OneKey(), SystemClock()),
        metrics=Metrics("vault"),
        tracer=trace.NoOpTracer(),
        ids=RandomIds(),
        drain=0.1,
    )
    server.add(leases_pb2_grpc.add_LeaseServiceServicer_to_server, lender)

    async def token() -> str:
        return token_for(OURSELVES)

    async with server, connect(str(server.address), token) as channel:
        yield Vault(lender, server, channel)


def _lease(subject: str, entry: str, version: int) -> str:
    return f"tenants/acme/credentials/{subject.rpartition('/')[2]}-{entry}/leases/{version}"
