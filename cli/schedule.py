"""`tieline schedule`: when what is polled, and how that goes."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import show, show_list
from foundation.errors import Code, Problem
from tieline.registry.v1 import schedules_pb2 as pb
from tieline.registry.v1 import schedules_pb2_grpc


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)

    def on_one(name: str, what: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(name, help=what)
        action.add_argument("connection", help="the connection")
        action.add_argument("schedule", help="the last part of its name, as `list` shows it")
        return action

    listing = actions.add_parser("list", help="show those of a connection, or of all")
    listing.add_argument("connection", nargs="?", default="-", help="the connection; left out: all")
    listing.add_argument("--stream", default="", metavar="NAME", help="only of this stream")
    add_paging(listing)
    on_one("show", "show one")
    on_one("run", "poll now")
    reset = on_one("reset", "forget how far it was read, and begin again")
    reset.add_argument("--from", dest="start", metavar="TIME", help="where to begin: 2026-01-31T12:00:00Z")
    backfill = actions.add_parser("backfill", help="read a stretch of the past, beside what is polled")
    backfill.add_argument("connection", help="the connection")
    backfill.add_argument("stream", help="the stream; its plugin must be able to")
    backfill.add_argument("--from", dest="start", required=True, metavar="TIME", help="first moment")
    backfill.add_argument("--to", dest="end", required=True, metavar="TIME", help="first moment no more")
    backfill.add_argument(
        "--partition", action="append", default=[], metavar="GLOB", help="only these partitions"
    )
    on_one("cancel", "end a backfill, all its partitions; what was read stays")


async def schedule(options: argparse.Namespace) -> None:
    parent = f"{need_tenant(options)}/connections/{options.connection}"
    request = _REQUESTS[options.action](options, parent)
    async with client(options) as installation:
        stub = schedules_pb2_grpc.ScheduleServiceStub(installation.registry)
        method: Callable[[Any], Awaitable[Any]] = getattr(stub, _METHODS[options.action])
        answer = await method(request)
    if options.action == "list":
        show_list(options, answer.schedules, map(_line, answer.schedules), answer.next_page_token)
    else:
        show(options, answer, "\n".join(_about(answer)))


def _name(options: argparse.Namespace, parent: str) -> str:
    return f"{parent}/schedules/{options.schedule}"


def _list(options: argparse.Namespace, parent: str) -> pb.ListSchedulesRequest:
    return pb.ListSchedulesRequest(
        parent=parent, stream=options.stream, page_size=options.limit, page_token=options.page_token
    )


def _reset(options: argparse.Namespace, parent: str) -> pb.ResetScheduleRequest:
    start = _time(options.start, "--from") if options.start else None
    return pb.ResetScheduleRequest(name=_name(options, parent), start_time=start)


def _backfill(options: argparse.Namespace, parent: str) -> pb.StartBackfillRequest:
    return pb.StartBackfillRequest(
        parent=parent,
        stream=options.stream,
        partitions=options.partition,
        start_time=_time(options.start, "--from"),
        end_time=_time(options.end, "--to"),
        request_id=str(uuid.uuid4()),
    )


def _time(text: str, field: str) -> Timestamp:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        why = f"{text!r} is not like 2026-01-31 or 2026-01-31T12:00:00Z"
        raise Problem(Code.INVALID_ARGUMENT, field=field, why=why) from None
    stamp = Timestamp()
    stamp.FromDatetime(at if at.tzinfo else at.replace(tzinfo=UTC))
    return stamp


def _line(one: pb.Schedule) -> str:
    _, _, below = one.name.partition("/connections/")
    why = one.failure.message or one.failure.reason
    return f"{below.replace('/schedules/', ' '):<48} {_state(one):<10} {_when(one):<26} {why}".rstrip()


def _about(one: pb.Schedule) -> Iterator[str]:
    yield f"{one.name} {_state(one)}"
    if one.partition:
        yield f"  partition {one.partition} {one.partition_title}".rstrip()
    if one.HasField("failure"):
        yield f"  {one.failure.message or one.failure.reason}"
    if one.HasField("backfill"):
        yield f"  from {one.backfill.start_time.ToJsonString()} to {one.backfill.end_time.ToJsonString()}"
    if one.HasField("interval"):
        yield f"  every {one.interval.ToTimedelta().total_seconds():g} s"
    for what, field in _TIMES.items():
        if one.HasField(field):  # type: ignore[arg-type]  # one of its own
            yield f"  {what} {getattr(one, field).ToJsonString()}"
    if one.HasField("lag"):
        yield f"  behind by up to {one.lag.ToTimedelta().total_seconds():.0f} s"
    yield f"  {one.records} records so far"


_TIMES = {
    "next": "next_poll_time",
    "last began": "last_start_time",
    "last caught up": "last_success_time",
    "checkpoint of": "checkpoint_time",
}


def _state(one: pb.Schedule) -> str:
    return pb.Schedule.State.Name(one.state).removeprefix("STATE_").lower()


def _when(one: pb.Schedule) -> str:
    return f"next {one.next_poll_time.ToJsonString()[:19]}Z" if one.HasField("next_poll_time") else ""


_METHODS = {
    "list": "ListSchedules",
    "show": "GetSchedule",
    "run": "RunSchedule",
    "reset": "ResetSchedule",
    "backfill": "StartBackfill",
    "cancel": "CancelBackfill",
}
_REQUESTS: Mapping[str, Callable[[argparse.Namespace, str], Any]] = {
    "list": _list,
    "show": lambda options, parent: pb.GetScheduleRequest(name=_name(options, parent)),
    "run": lambda options, parent: pb.RunScheduleRequest(name=_name(options, parent)),
    "reset": _reset,
    "backfill": _backfill,
    "cancel": lambda options, parent: pb.CancelBackfillRequest(name=_name(options, parent)),
}
