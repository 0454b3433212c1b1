from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from foundation.rpc.times import stamp
from services.registry.connections.connection import State
from services.registry.health.platform import Limitation, Platform
from services.registry.health.reports import Report
from services.registry.health.rules import Health
from services.registry.health.seen import Seen
from services.registry.health.status import Status, StatusBook
from tieline.common.v1.failure_pb2 import ThrottleScope
from tieline.registry.v1 import status_pb2 as pb
from tieline.registry.v1 import status_pb2_grpc
from tieline.registry.v1.connections_pb2 import Connection

# ruff: noqa: N802  the contract's names

PART = 200
KNOWN_SECONDS = 3.0
"""After a start, the book is read within a moment."""
_CIRCUIT = pb.ConnectionStatus.Circuit


class StatusServicer(status_pb2_grpc.StatusServiceServicer):
    def __init__(self, book: StatusBook, platform: Platform, seen: Seen) -> None:
        self._book, self._platform, self.seen = book, platform, seen

    def stop_watching(self) -> None:
        self._book.stop_watching()

    async def GetConnectionStatus(
        self, request: pb.GetConnectionStatusRequest, _: ServicerContext
    ) -> pb.ConnectionStatus:
        parse("tenants/*/connections/*", request.name, "name")
        status = (await self._statuses()).get(request.name)
        if status is None:
            raise Problem(Code.NOT_FOUND, what=f"a status of {request.name}, which is not there or very new")
        return self._shown(status)

    async def ListConnectionStatuses(
        self, request: pb.ListConnectionStatusesRequest, _: ServicerContext
    ) -> pb.ListConnectionStatusesResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        await self._statuses()
        page, more = _page(self._book.worst_first(tenant), request.page_size, request.page_token)
        return pb.ListConnectionStatusesResponse(
            connection_statuses=map(self._shown, page), next_page_token=more
        )

    async def ListAllConnectionStatuses(
        self, request: pb.ListAllConnectionStatusesRequest, _: ServicerContext
    ) -> pb.ListAllConnectionStatusesResponse:
        await self._statuses()
        only = [_health(health) for health in request.health]
        page, more = _page(self._book.worst_first(only=only), request.page_size, request.page_token)
        return pb.ListAllConnectionStatusesResponse(
            connection_statuses=map(self._shown, page), next_page_token=more
        )

    async def WatchConnectionStatuses(
        self, request: pb.WatchConnectionStatusesRequest, _: ServicerContext
    ) -> AsyncIterator[pb.WatchConnectionStatusesResponse]:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        async for news in self._book.watch(tenant):
            changed = list(news.changed)
            for start in range(0, max(1, len(changed)), PART):
                last = start + PART >= len(changed)
                yield pb.WatchConnectionStatusesResponse(
                    connection_statuses=map(self._shown, changed[start : start + PART]),
                    complete=last,
                    deleted=news.gone if last else (),
                )

    async def GetPlatformStatus(
        self, _: pb.GetPlatformStatusRequest, __: ServicerContext
    ) -> pb.PlatformStatus:
        await self._statuses()
        counted = Counter(status.health for status in self._book.statuses.values())
        return pb.PlatformStatus(
            limitations=map(_limitation, await self._platform.fresh()),
            connections={health.name.lower(): count for health, count in counted.items()},
        )

    def _shown(self, status: Status) -> pb.ConnectionStatus:
        return shown(status, self.seen.version(status.connection))

    async def _statuses(self) -> Mapping[str, Status]:
        if not await self._book.until_known(KNOWN_SECONDS):
            why = "the connections are not read yet; ask again in a moment"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the book of statuses", why=why)
        return self._book.statuses


def _health(given: int) -> Health:
    try:
        return Health(given)
    except ValueError:
        raise Problem(Code.INVALID_ARGUMENT, field="health", why=f"there is no health {given}") from None


def _page(found: Sequence[Status], asked: int, token: str) -> tuple[Sequence[Status], str]:
    size, after = paging.page_size(asked), paging.after(token)
    rest = [status for status in found if _key(status) > after] if after else found
    return paging.cut(rest[: size + 1], size, _key)


def _key(status: Status) -> str:
    order, name = status.rank
    return f"{order}/{name}"


def shown(status: Status, version: str) -> pb.ConnectionStatus:
    connection, report = status.connection, status.report
    told = pb.ConnectionStatus(
        connection=connection.name,
        plugin_version=f"{connection.plugin}@{version}".rstrip("@"),
        health=pb.ConnectionStatus.Health.ValueType(status.health),
        health_time=stamp(status.since),
        explanation=status.explanation,
        state=_state(status),
        process=pb.ConnectionStatus.Health.ValueType(report.process),
        instance=pb.ConnectionStatus.Health.ValueType(status.instance),
        outcomes=pb.ConnectionStatus.Health.ValueType(report.outcomes),
        traffic=_traffic(report),
        backlog=status.backlog.waiting,
        dead_letters=status.backlog.dead_letters,
        operations_waiting=status.queue.waiting,
        operations_ambiguous=status.queue.ambiguous,
    )
    for circuit in report.circuits:
        state = _CIRCUIT.STATE_HALF_OPEN if circuit.half_open else _CIRCUIT.STATE_OPEN
        told.circuits.add(operation=circuit.operation, state=state, retry_time=stamp(circuit.retry_time))
    for throttle in report.throttles:
        scope = ThrottleScope(reach=ThrottleScope.Reach.ValueType(throttle.reach), bucket=throttle.bucket)
        told.throttles.add(scope=scope, until=stamp(throttle.until))
    if status.lag:
        told.lag.FromMilliseconds(round(status.lag * 1000))
    if status.last_event_time is not None:
        told.last_event_time.CopyFrom(stamp(status.last_event_time))
    return told


def _state(status: Status) -> Connection.State.ValueType:
    """What health makes of a connection that would be active: it is being tried again."""
    stored = status.connection.state
    state = State.FAILING if stored is State.ACTIVE and status.health is Health.DOWN else stored
    return Connection.State.Value(f"STATE_{state.name}")


def _traffic(report: Report) -> pb.ConnectionStatus.Traffic:
    traffic = report.traffic
    told = pb.ConnectionStatus.Traffic(
        calls=traffic.calls, failures=traffic.failures, inputs=traffic.inputs, events=traffic.events
    )
    if traffic.calls:
        told.p50.FromMicroseconds(round(traffic.quantile(0.5) * 1e6))
        told.p99.FromMicroseconds(round(traffic.quantile(0.99) * 1e6))
    return told


def _limitation(found: Limitation) -> pb.PlatformStatus.Limitation:
    return pb.PlatformStatus.Limitation(
        component=found.component,
        reason=found.reason,
        effect=found.effect,
        since=stamp(found.since),
    )
