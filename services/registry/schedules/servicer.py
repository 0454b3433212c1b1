from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc import paging
from foundation.rpc.call import ServicerContext
from foundation.rpc.times import moment, stamp
from services.registry.schedules.book import Past, ScheduleBook
from services.registry.schedules.schedule import Key, Schedule
from tieline.registry.v1 import schedules_pb2 as pb
from tieline.registry.v1 import schedules_pb2_grpc

# ruff: noqa: N802  the contract's names


class ScheduleServicer(schedules_pb2_grpc.ScheduleServiceServicer):
    def __init__(self, book: ScheduleBook) -> None:
        self._book = book

    async def GetSchedule(self, request: pb.GetScheduleRequest, _: ServicerContext) -> pb.Schedule:
        return _told(await self._book.get(_key(request.name)))

    async def ListSchedules(
        self, request: pb.ListSchedulesRequest, _: ServicerContext
    ) -> pb.ListSchedulesResponse:
        tenant, connection = parse("tenants/*/connections/*", request.parent, "parent")
        size = paging.page_size(request.page_size)
        last, _slash, id_ = paging.after(request.page_token).partition("/")
        one = "" if connection == "-" else connection
        found = await self._book.listed(
            tenant, one, _text(request.stream, "stream"), after=(last, id_), limit=size + 1
        )
        page, more = paging.cut(found, size, lambda row: f"{row.key.connection}/{row.key.id}")
        return pb.ListSchedulesResponse(schedules=map(_told, page), next_page_token=more)

    async def RunSchedule(self, request: pb.RunScheduleRequest, _: ServicerContext) -> pb.Schedule:
        return _told(await self._book.run(_key(request.name)))

    async def ResetSchedule(self, request: pb.ResetScheduleRequest, _: ServicerContext) -> pb.Schedule:
        start = moment(request.start_time, "start_time") if request.HasField("start_time") else None
        return _told(await self._book.reset(_key(request.name), start))

    async def StartBackfill(self, request: pb.StartBackfillRequest, _: ServicerContext) -> pb.Schedule:
        parse("tenants/*/connections/*", request.parent, "parent")
        for field in ("start_time", "end_time"):
            if not request.HasField(field):
                raise Problem(Code.INVALID_ARGUMENT, field=field, why="it is missing")
        past = Past(
            connection=request.parent,
            stream=_text(request.stream, "stream"),
            globs=tuple(_text(glob, "partitions") for glob in request.partitions),
            start=moment(request.start_time, "start_time"),
            end=moment(request.end_time, "end_time"),
            request_id=_text(request.request_id, "request_id"),
        )
        return _told(await self._book.backfill(past))

    async def CancelBackfill(self, request: pb.CancelBackfillRequest, _: ServicerContext) -> pb.Schedule:
        return _told(await self._book.cancel(_key(request.name)))


def _key(name: str) -> Key:
    return Key(*parse("tenants/*/connections/*/schedules/*", name, "name"))


def _text(text: str, field: str) -> str:
    if "\0" in text or len(text) > 512:
        raise Problem(Code.INVALID_ARGUMENT, field=field, why="it holds a NUL, or more than 512 characters")
    return text


def _told(one: Schedule) -> pb.Schedule:
    told = pb.Schedule(
        name=one.key.name,
        stream=one.stream,
        partition=one.partition.id,
        partition_title=one.partition.title,
        state=pb.Schedule.State.Value(f"STATE_{one.state.name}"),
        failure=one.failure,
        last_start_time=_stamp(one.last_start_time),
        last_success_time=_stamp(one.last_success_time),
        records=one.records,
        checkpoint_time=_stamp(one.checkpoint_time),
        fence=one.fence,
    )
    if one.interval:
        told.interval.FromMilliseconds(round(one.interval * 1000))
    if one.state in {one.state.WAITING, one.state.THROTTLED, one.state.FAILING}:
        told.next_poll_time.FromDatetime(one.next_time)
    if one.lag is not None:
        told.lag.FromMilliseconds(round(max(one.lag, 0.0) * 1000))
    if one.window is not None:
        start, end = map(_stamp, one.window)
        told.backfill.CopyFrom(pb.Schedule.Backfill(start_time=start, end_time=end))
    return told


def _stamp(value: datetime | None) -> Timestamp | None:
    return None if value is None else stamp(value)
