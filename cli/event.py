"""`tieline event`: what happened, as everybody is told it."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp

from cli.client import client, need_tenant
from cli.options import add_paging
from cli.output import document, one_line, show, show_list
from foundation.errors import Problem
from foundation.rpc import Connection
from tieline.event.v1.content_pb2 import Category, Severity
from tieline.event.v1.event_pb2 import Authenticity, Event
from tieline.mapper.v1 import events_pb2_grpc, subscriptions_pb2_grpc
from tieline.mapper.v1.events_pb2 import GetEventRequest, ListEventsRequest
from tieline.mapper.v1.subscriptions_pb2 import EventFilter, SubscribeRequest

SEVERITIES = ("debug", "info", "warning", "error", "critical")
RETRY_SECONDS = 0.5
REMEMBERED = 1000
"""Events of a stream that was cut: the same ones are told again after it."""


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show the latest")
    _choosing(listing)
    listing.add_argument("--connection", default="", metavar="NAME", help="from this connection, by its id")
    add_paging(listing)
    one = actions.add_parser("show", help="show one with all that is known of it")
    one.add_argument("id", help="the event's id")
    tail = actions.add_parser("tail", help="show what happens from now on, until Ctrl-C")
    _choosing(tail)
    tail.add_argument("--limit", type=int, default=0, metavar="N", help="end after this many")


def _choosing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--type", action="append", default=[], metavar="TYPE", help="such as `github.*`; may be given again"
    )
    verb.add_argument("--severity", choices=SEVERITIES, help="at least this severe")


async def event(options: argparse.Namespace) -> None:
    tenant = need_tenant(options)
    async with client(options) as installation:
        if options.action == "show":
            stub = events_pb2_grpc.EventServiceStub(installation.mapper)
            found = await stub.GetEvent(GetEventRequest(name=f"{tenant}/events/{options.id}"))
            show(options, found, _details(found))
        elif options.action == "list":
            await _list(options, tenant, installation.mapper)
        else:
            await _tail(options, tenant, installation.mapper)


async def _list(options: argparse.Namespace, tenant: str, mapper: Connection) -> None:
    request = ListEventsRequest(
        parent=tenant,
        page_size=options.limit,
        page_token=options.page_token,
        types=options.type,
        min_severity=_severity(options),
        connection=f"{tenant}/connections/{options.connection}" if options.connection else "",
    )
    page = await events_pb2_grpc.EventServiceStub(mapper).ListEvents(request)
    show_list(options, page.events, map(_line, page.events), page.next_page_token)


async def _tail(options: argparse.Namespace, tenant: str, mapper: Connection) -> None:
    limit, shown = options.limit, 0
    async for one in _follow(options, tenant, mapper):
        print(json.dumps(document(one)) if options.json else _line(one), flush=True)
        shown += 1
        if shown == limit:
            return


async def _follow(options: argparse.Namespace, tenant: str, mapper: Connection) -> AsyncGenerator[Event]:
    """From now on. When the stream is cut it goes on at the last event, which is not shown again."""
    stub = subscriptions_pb2_grpc.SubscriptionServiceStub(mapper)
    wanted = EventFilter(types=options.type, min_severity=_severity(options))
    request = SubscribeRequest(parent=tenant, filter=wanted)
    began = Timestamp()
    began.GetCurrentTime()
    known: deque[str] = deque(maxlen=REMEMBERED)
    while True:
        try:
            async for told in stub.Subscribe(request):
                for one in told.events:
                    if one.id not in known:
                        known.append(one.id)
                        began.CopyFrom(one.stored_at)
                        yield one
        except Problem as problem:
            if problem.meaning.grpc != "UNAVAILABLE":
                raise
        request.start_time.CopyFrom(began)
        await asyncio.sleep(RETRY_SECONDS)


def _severity(options: argparse.Namespace) -> Severity.ValueType:
    return (
        Severity.Value(f"SEVERITY_{options.severity.upper()}")
        if options.severity
        else Severity.Value("SEVERITY_UNSPECIFIED")
    )


def _word(one: Event) -> str:
    return Severity.Name(one.severity).removeprefix("SEVERITY_").lower()


def _moment(time: Timestamp) -> str:
    return time.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _line(one: Event) -> str:
    return f"{_moment(one.occurred_at)}  {_word(one):<8} {one.type:<32} {one_line(one.title)}  {one.id}"


def _details(one: Event) -> str:
    rows = {
        "id": one.id,
        "title": one.title,
        "type": one.type,
        "category": Category.Name(one.category).removeprefix("CATEGORY_").lower(),
        "severity": _word(one),
        "occurred": _moment(one.occurred_at),
        "received": _moment(one.received_at),
        "stored": _moment(one.stored_at),
        "connection": one.connection,
        "authenticity": Authenticity.Name(one.authenticity).removeprefix("AUTHENTICITY_").lower(),
        "original": one.raw.delivery,
    }
    lines = [f"{name:<14}{value}" for name, value in rows.items()]
    lines += [f"{'entity':<14}{entity.kind} {entity.id}" for entity in one.entities]
    lines += [f"{'evidence':<14}{item.kind} {item.url} {item.description}".rstrip() for item in one.evidence]
    if one.attributes:
        lines.append(f"{'attributes':<14}{one.attributes.decode()}")
    return "\n".join(lines)
