"""What `tieline status` tells of connections, and of what is limited."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration

from cli.client import client
from cli.output import document, one_line
from cli.status import Process
from foundation.errors import Problem
from foundation.telemetry.limits import EFFECTS
from tieline.registry.v1 import status_pb2_grpc
from tieline.registry.v1.status_pb2 import (
    ConnectionStatus,
    GetPlatformStatusRequest,
    ListAllConnectionStatusesRequest,
    ListConnectionStatusesRequest,
    PlatformStatus,
)

# What processes call the things that they rest on, in our words.
_COMPONENTS = {
    "postgres": "postgresql",
    "postgres (worker)": "postgresql",
    "nats": "jetstream",
    "jetstream": "jetstream",
}


@dataclass(slots=True)
class Health:
    """What the registry says; `unknown` says why it says nothing."""

    unknown: str
    counts: Mapping[str, int] = field(default_factory=dict)
    statuses: Sequence[ConnectionStatus] = ()
    next_page_token: str = ""
    limited: Sequence[dict[str, Any]] = ()

    def document(self) -> dict[str, Any]:
        if self.unknown:
            return {"connections": None, "connections_unknown": self.unknown}
        listed = [document(one) for one in self.statuses]
        told = {"items": listed, "next_page_token": self.next_page_token, "counts": dict(self.counts)}
        return {"connections": told}


async def ask_health(options: argparse.Namespace) -> Health:
    """Of all tenants, or of the one that is named."""
    try:
        async with client(options) as installation:
            stub = status_pb2_grpc.StatusServiceStub(installation.registry)
            if options.tenant:
                of_one = ListConnectionStatusesRequest(
                    parent=f"tenants/{options.tenant}",
                    page_size=options.limit,
                    page_token=options.page_token,
                )
                page = await stub.ListConnectionStatuses(of_one)
                return Health("", {}, page.connection_statuses, page.next_page_token)
            of_all = ListAllConnectionStatusesRequest(page_size=options.limit, page_token=options.page_token)
            everything = await stub.ListAllConnectionStatuses(of_all)
            platform = await stub.GetPlatformStatus(GetPlatformStatusRequest())
    except Problem as problem:
        return Health(problem.sentence)
    return Health(
        "",
        platform.connections,
        everything.connection_statuses,
        everything.next_page_token,
        [_limit(one) for one in platform.limitations],
    )


def limits_of(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """What is limited as far as the processes show: for when nobody can be asked who knows better."""
    found: dict[str, str] = {}
    for process in processes:
        if not process.answer.status:
            found.setdefault(process.name, "it does not answer")
        for name, state in process.answer.body.get("dependencies", {}).items():
            component = _COMPONENTS.get(name, name)
            if state != "ok" and component in EFFECTS:
                found.setdefault(component, str(state))
    return [
        {"component": component, "reason": reason, "effect": EFFECTS.get(component, "")}
        for component, reason in sorted(found.items())
    ]


def lines(health: Health, limited: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in limited:
        yield f"limited: {one['component']}: {one['reason']} - {one['effect']}"
    if health.unknown:
        yield f"connections: not known: {health.unknown}"
        return
    counted = ", ".join(f"{count} {name}" for name, count in sorted(health.counts.items()))
    if counted or not health.statuses:
        yield f"connections: {counted or 'none'}"
    now = datetime.now(UTC)
    for status in health.statuses:
        yield _line(status, now)
    if health.next_page_token:
        yield f"more: --page-token {health.next_page_token}"


def _limit(one: PlatformStatus.Limitation) -> dict[str, Any]:
    return document(one)


def _line(status: ConnectionStatus, now: datetime) -> str:
    health = ConnectionStatus.Health.Name(status.health).removeprefix("HEALTH_").lower()
    health = "unknown" if health == "unspecified" else health
    since = _span((now - status.health_time.ToDatetime(UTC)).total_seconds())
    name = status.connection.removeprefix("tenants/").replace("/connections/", "/")
    parts = (_traffic(status), *_extras(status), one_line(status.explanation))
    told = "; ".join(part for part in parts if part)
    return f"{health:<9} {since:>5}  {name:<32} {status.plugin_version:<20} {told}".rstrip()


def _traffic(status: ConnectionStatus) -> str:
    traffic = status.traffic
    if not traffic.calls:
        return "no calls"
    share = f", {100 * traffic.failures / traffic.calls:.0f}% failed" if traffic.failures else ""
    return f"{traffic.calls} calls{share}, p50 {_milliseconds(traffic.p50)}, p99 {_milliseconds(traffic.p99)}"


def _extras(status: ConnectionStatus) -> Iterator[str]:
    if status.backlog:
        yield f"{status.backlog} wait, the oldest {_span(status.lag.ToTimedelta().total_seconds())}"
    if status.dead_letters:
        yield f"{status.dead_letters} dead letters"
    if status.operations_waiting or status.operations_ambiguous:
        yield f"{status.operations_waiting} operations wait, {status.operations_ambiguous} are ambiguous"
    for circuit in status.circuits:
        yield f"circuit {circuit.operation} {ConnectionStatus.Circuit.State.Name(circuit.state)[6:].lower()}"
    for throttle in status.throttles:
        yield f"rate limited{f' ({throttle.scope.bucket})' if throttle.scope.bucket else ''}"


def _milliseconds(duration: Duration) -> str:
    return f"{duration.ToTimedelta().total_seconds() * 1000:.3g} ms"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
