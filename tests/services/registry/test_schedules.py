"""Schedules on the real registry: chosen, polled into a real inbox, throttled, stopped, begun again, read of the past."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace

from foundation.clock import RandomIds, SystemClock
from foundation.engines.testing import Served, fresh_database
from foundation.errors import Code, Problem
from foundation.identity import TokenVerifier
from foundation.process.testing import until
from foundation.rpc import RpcServer
from foundation.settings import Address
from foundation.store.opening import open_store
from foundation.store.schemas import MAPPER, REGISTRY
from foundation.store.unit_of_work import Store
from foundation.store.url import DatabaseUrl
from foundation.telemetry import Metrics
from services.mapper.inbox import Inbox
from services.mapper.inbox_servicer import InboxServicer
from services.mapper.store.inbox import InboxStore, PressureStore
from services.registry.main import serve
from services.registry.schedules.opening import remove_schedules
from tests.services.registry.conftest import (
    ADMIN,
    FOREIGN,
    OPERATOR,
    PASSWORDS,
    TEMPLATE,
    VIEWER,
    OneKey,
    Running,
    prepared,
    ready,
)
from tests.services.registry.polled import make_polled, noted, spans
from tieline.event.v1.event_pb2 import Event
from tieline.mapper.v1.inbox_pb2_grpc import add_InboxServiceServicer_to_server
from tieline.registry.v1 import connections_pb2_grpc, schedules_pb2_grpc
from tieline.registry.v1 import schedules_pb2 as pb
from tieline.registry.v1.connections_pb2 import Connection, CreateConnectionRequest, StreamChoice

S = pb.Schedule


@asynccontextmanager
async def real_inbox(engines: Served) -> AsyncIterator[tuple[Address, Store, InboxServicer]]:
    """The mapper's inbox on a database of its own: where it answers, and what it keeps."""
    async with AsyncExitStack() as stack:
        admin = DatabaseUrl.parse(await stack.enter_async_context(fresh_database(engines.postgres, TEMPLATE)))
        own, kept = (
            Store(admin.login(role, PASSWORDS[role]), MAPPER, application="tests")
            for role in (MAPPER.service, MAPPER.worker)
        )
        stack.push_async_callback(own.aclose)
        stack.push_async_callback(kept.aclose)
        server = RpcServer(
            Address("127.0.0.1", 0),
            authenticator=TokenVerifier(OneKey(), SystemClock()),
            metrics=Metrics("inbox"),
            tracer=trace.NoOpTracer(),
            ids=RandomIds(),
            drain=0.1,
        )
        servicer = InboxServicer(Inbox(InboxStore(own)), PressureStore(kept), asyncio.Event(), SystemClock())
        server.add(add_InboxServiceServicer_to_server, servicer)
        await stack.enter_async_context(server)
        yield server.address, kept, servicer


@dataclass
class Polling:
    running: Running
    kept: Store
    inbox: InboxServicer
    where: Path

    async def connect(
        self,
        name: str,
        *streams: StreamChoice,
        word: str = "",
        policy: Connection.ResyncPolicy.ValueType = Connection.RESYNC_POLICY_UNSPECIFIED,
        plugin: str = "polled",
        tenant: str = "acme",
    ) -> str:
        wanted = Connection(
            plugin=f"plugins/{plugin}",
            settings=json.dumps({"word": word}).encode(),
            streams=streams,
            resync_policy=policy,
        )
        async with self.running.as_(ADMIN) as channel:
            stub = connections_pb2_grpc.ConnectionServiceStub(channel)
            made = await stub.CreateConnection(
                CreateConnectionRequest(parent=f"tenants/{tenant}", connection_id=name, connection=wanted)
            )
        return made.name

    async def ask(self, method: str, request: Any, principal: Any = OPERATOR) -> Any:
        async with self.running.as_(principal) as channel:
            return await getattr(schedules_pb2_grpc.ScheduleServiceStub(channel), method)(request)

    async def get(self, name: str) -> pb.Schedule:
        found: pb.Schedule = await self.ask("GetSchedule", pb.GetScheduleRequest(name=name), VIEWER)
        return found

    async def all(self, parent: str, **more: Any) -> list[pb.Schedule]:
        answer = await self.ask("ListSchedules", pb.ListSchedulesRequest(parent=parent, **more), VIEWER)
        return list(answer.schedules)

    async def becomes(self, name: str, *states: S.State.ValueType) -> pb.Schedule:
        found = S()

        async def is_so() -> bool:
            nonlocal found
            try:
                found = await self.get(name)
            except Problem as problem:
                if problem.code is not Code.NOT_FOUND:
                    raise
                return False
            return found.state in states

        await until(is_so, 60)
        return found

    async def records(self) -> list[str]:
        async with self.kept.across_tenants() as work:
            rows = await work.exec_driver_sql("select body from deliveries")
            return sorted(json.loads(bytes(row.body))["n"] for row in rows)


@pytest.fixture
async def polling(engines: Served, tmp_path: Path) -> AsyncIterator[Polling]:
    make_polled(tmp_path)
    async with real_inbox(engines) as (address, kept, inbox), prepared(engines, tmp_path) as running:
        # The plugin notes its polls beside its folder, where a confined one could not; notices stay to be seen.
        running.settings = msgspec.structs.replace(
            running.settings, mapper=address, sandbox="none", nats_url=None
        )
        task = asyncio.create_task(serve(running.settings, running.stopping))
        try:
            await ready(running, task)
            yield Polling(running, kept, inbox, tmp_path)
        finally:
            running.stopping.set()
            await task


def every(seconds: float, stream: str = "items", **more: Any) -> StreamChoice:
    interval = Duration()
    interval.FromMilliseconds(round(seconds * 1000))
    return StreamChoice(stream=stream, interval=interval, **more)


async def test_what_is_chosen_is_polled_on_its_beat_into_the_inbox(polling: Polling) -> None:
    name = await polling.connect("main", every(1))
    await polling.becomes(f"{name}/schedules/items", S.STATE_WAITING, S.STATE_RUNNING)

    async def thrice() -> bool:
        return len(noted(polling.where, "end")) >= 3

    await until(thrice, 60)
    begun = noted(polling.where, "begin")
    assert [one["cursor"] for one in begun[:3]] == ["", "3", "6"], "each goes on where the last one was"
    times = [one["time"] for one in begun]
    assert min(b - a for a, b in pairwise(times)) > 0.9
    await until(lambda: _true(polling.records(), lambda found: len(found) >= 9), 30)
    asking = partial(polling.get, f"{name}/schedules/items")
    await until(lambda: _true(asking(), lambda found: found.records >= 9), 30)
    found = await asking()
    assert (found.stream, found.partition, found.interval.ToTimedelta()) == (
        "items",
        "",
        timedelta(seconds=1),
    )
    assert found.fence >= 3
    assert found.HasField("checkpoint_time")
    assert found.HasField("last_success_time")
    assert found.lag.ToTimedelta() < timedelta(seconds=60)


async def _true(coming: Any, is_so: Any) -> bool:
    return bool(is_so(await coming))


async def test_parts_come_and_go_and_go_on_where_they_were(polling: Polling) -> None:
    (polling.where / "parts").write_text("a b x-1 x-2")
    name = await polling.connect("main", every(1, "parts", include=["*"], exclude=["x-*"]))
    await polling.becomes(f"{name}/schedules/parts.a", S.STATE_WAITING, S.STATE_RUNNING)
    await until(lambda: len(noted(polling.where, "end")) >= 4, 60)
    shown = await polling.all(name)
    assert [one.name.rpartition("/")[2] for one in shown] == ["parts", "parts.a", "parts.b"]
    assert shown[1].partition_title == "part a"

    (polling.where / "parts").write_text("b c")
    await polling.ask("RunSchedule", pb.RunScheduleRequest(name=f"{name}/schedules/parts"))
    gone = await polling.becomes(f"{name}/schedules/parts.a", S.STATE_STOPPED)
    assert gone.failure.reason == "PARTITION_GONE"
    await polling.becomes(f"{name}/schedules/parts.c", S.STATE_WAITING, S.STATE_RUNNING)
    with pytest.raises(Problem) as refused:
        await polling.ask("RunSchedule", pb.RunScheduleRequest(name=gone.name))
    assert refused.value.code is Code.STATE_REFUSES

    reached = max(int(one["cursor"] or 0) for one in noted(polling.where, "begin") if one["partition"] == "a")
    (polling.where / "parts").write_text("a b c")
    await polling.ask("RunSchedule", pb.RunScheduleRequest(name=f"{name}/schedules/parts"))
    await polling.becomes(f"{name}/schedules/parts.a", S.STATE_WAITING, S.STATE_RUNNING)
    before = len(noted(polling.where, "begin"))
    await until(lambda: any(one["partition"] == "a" for one in noted(polling.where, "begin")[before:]), 60)
    again = next(one for one in noted(polling.where, "begin")[before:] if one["partition"] == "a")
    assert int(again["cursor"]) == reached + 3, "its checkpoint was kept"


async def test_the_past_is_read_beside_the_present_and_ends(polling: Polling) -> None:
    name = await polling.connect("main", every(3600))
    await polling.becomes(f"{name}/schedules/items", S.STATE_WAITING)
    for polls in (1, 2, 3):
        await until(partial(_polls, polling, polls), 60)
        await polling.becomes(f"{name}/schedules/items", S.STATE_WAITING)
        if polls < 3:
            await polling.ask("RunSchedule", pb.RunScheduleRequest(name=f"{name}/schedules/items"))
    request = pb.StartBackfillRequest(
        parent=name, stream="items", request_id="6d8e5f54-5d5b-4b5c-8a4e-1f1f1f1f1f1f"
    )
    request.start_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    request.end_time.FromDatetime(datetime(2026, 1, 7, tzinfo=UTC))
    begun = await polling.ask("StartBackfill", request)
    assert begun.backfill.end_time == request.end_time
    again = await polling.ask("StartBackfill", request)
    assert again.name == begun.name, "the same request again is the same backfill"
    done = await polling.becomes(begun.name, S.STATE_DONE)
    assert done.records == 6
    assert (
        await polling.ask("CancelBackfill", pb.CancelBackfillRequest(name=begun.name))
    ).state == S.STATE_DONE
    past = [one for one in noted(polling.where, "begin") if one["past"]]
    assert [one["cursor"] for one in past] == [""], "it has a checkpoint of its own"
    assert len(await polling.records()) == 15, "and a fence of its own, or the inbox had refused it"
    assert [one[0] for one in polling.running.audit.said if one[0].startswith("schedule.")] == [
        *["schedule.run"] * 4,
        *["schedule.backfill"] * 2,
    ]


def _polls(polling: Polling, count: int) -> bool:
    return len(noted(polling.where, "end")) >= count


async def test_the_past_waits_while_the_inbox_is_full_and_can_be_given_up(polling: Polling) -> None:
    polling.inbox.hold_bulk = -1
    (polling.where / "parts").write_text("a b c")
    name = await polling.connect("main", every(3600, "parts"))
    await polling.becomes(f"{name}/schedules/parts.c", S.STATE_WAITING)
    request = pb.StartBackfillRequest(parent=name, stream="parts", partitions=["a", "b"])
    request.start_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    request.end_time.FromDatetime(datetime(2026, 1, 7, tzinfo=UTC))
    begun = await polling.ask("StartBackfill", request)
    both = [one for one in await polling.all(name) if one.HasField("backfill")]
    assert [one.partition for one in both] == ["a", "b"]

    async def waits() -> bool:
        found = await polling.get(begun.name)
        return found.HasField("last_start_time") and found.state == S.STATE_WAITING

    await until(waits, 60)
    assert not [one for one in noted(polling.where, "begin") if one["past"]]
    ended = await polling.ask("CancelBackfill", pb.CancelBackfillRequest(name=begun.name))
    assert (ended.state, ended.failure.reason) == (S.STATE_STOPPED, "CANCELLED")
    assert (await polling.get(both[1].name)).state == S.STATE_STOPPED, "all of its parts"
    with pytest.raises(Problem) as refused:
        await polling.ask("RunSchedule", pb.RunScheduleRequest(name=begun.name))
    assert refused.value.code is Code.STATE_REFUSES


@pytest.mark.parametrize(
    ("policy", "starts"),
    [
        (Connection.RESYNC_POLICY_LOOKBACK, None),
        (Connection.RESYNC_POLICY_FROM_LAST, datetime(2026, 1, 3, tzinfo=UTC).timestamp()),
    ],
)
async def test_a_forgotten_checkpoint_is_begun_anew_as_the_connection_says(
    polling: Polling, policy: Connection.ResyncPolicy.ValueType, starts: float | None
) -> None:
    await polling.connect("main", every(1), word="forgetful", policy=policy)
    await until(lambda: len(noted(polling.where, "begin")) >= 3, 60)
    first, second, third = noted(polling.where, "begin")[:3]
    assert (first["cursor"], second["cursor"], third["cursor"]) == ("", "3", "")
    assert (first["start"], third["start"]) == (None, starts)


async def test_a_person_decides_about_a_forgotten_checkpoint_if_so_chosen(polling: Polling) -> None:
    stop = Connection.RESYNC_POLICY_STOP
    name = await polling.connect("main", every(1), word="forgetful", policy=stop)
    stopped = await polling.becomes(f"{name}/schedules/items", S.STATE_STOPPED)
    assert stopped.failure.reason == "TOO_OLD"
    (told,) = await _notices(polling)
    assert (told.type, told.tenant) == ("tieline.schedule.stopped", "tenants/acme")
    assert json.loads(told.attributes)["remedy"] == "tieline schedule reset main items"
    reset = pb.ResetScheduleRequest(name=stopped.name)
    reset.start_time.FromDatetime(datetime(2026, 1, 2, tzinfo=UTC))
    await polling.ask("ResetSchedule", reset)
    await until(lambda: noted(polling.where, "begin")[-1]["start"] is not None, 60)
    assert noted(polling.where, "begin")[-1]["start"] == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
    assert ("schedule.reset", stopped.name, "INTENT") in polling.running.audit.said


async def _notices(polling: Polling) -> list[Event]:
    rows = await polling.running.sql("select content from registry.notices")
    return [Event.FromString(row["content"]) for row in rows]


async def test_who_is_refused_is_asked_ever_more_rarely_and_says_why(polling: Polling) -> None:
    name = await polling.connect("main", every(1), word="refused")
    failing = await polling.becomes(f"{name}/schedules/items", S.STATE_FAILING)
    assert failing.failure.reason == "BAD_TOKEN"
    other = await polling.connect("other", every(60), word="patient")
    patient = await polling.becomes(f"{other}/schedules/items", S.STATE_THROTTLED)
    wait = patient.next_poll_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(seconds=60) < wait <= timedelta(seconds=133)


async def test_a_connection_that_rests_is_not_polled_and_goes_on_where_it_was(polling: Polling) -> None:
    name = await polling.connect("main", every(1))
    schedule = f"{name}/schedules/items"
    await until(lambda: len(noted(polling.where, "end")) >= 2, 60)
    await polling.running.sql("update registry.connections set state = 'paused'")
    await polling.running.sql("update registry.picture set generation = generation + 1")
    stopped = await polling.becomes(schedule, S.STATE_STOPPED)
    assert stopped.failure.reason == "CONNECTION_RESTS"
    before = noted(polling.where, "begin")
    mine = before[0]["instance"]
    await polling.connect("witness", every(1))
    await until(lambda: len(noted(polling.where, "begin")) >= len(before) + 3, 60)
    meanwhile = noted(polling.where, "begin")[len(before) :]
    assert mine not in {one["instance"] for one in meanwhile}
    await polling.running.sql("update registry.connections set state = 'active'")
    await polling.running.sql("update registry.picture set generation = generation + 1")

    def again() -> list[dict[str, Any]]:
        return [one for one in noted(polling.where, "begin")[len(before) :] if one["instance"] == mine]

    await until(again, 60)
    assert int(again()[0]["cursor"]) == 3 * len(before)


_SPREAD = "select next_time from registry.schedules where spread"


async def test_after_a_standstill_everybody_is_polled_once_and_not_in_one_moment(polling: Polling) -> None:
    parts = [f"p{number}" for number in range(16)]
    (polling.where / "parts").write_text(" ".join(parts))
    name = await polling.connect("main", every(600, "parts"))
    await until(partial(_polls, polling, len(parts)), 60)
    for part in parts:
        await polling.becomes(f"{name}/schedules/parts.{part}", S.STATE_WAITING)
    before = len(noted(polling.where, "begin"))
    await polling.running.sql("update registry.schedules set next_time = now() - interval '1 day'")

    async def all_put_off() -> bool:
        overdue = "select from registry.schedules where next_time < now() - interval '1 hour'"
        return not await polling.running.sql(overdue)

    await until(all_put_off, 60)
    planned = [row["next_time"] for row in await polling.running.sql(_SPREAD)]
    assert max(planned) - min(planned) > timedelta(seconds=10), "they are spread"
    # Time passes: their turn has come.
    await polling.running.sql(
        "update registry.schedules set next_time = least(next_time, now()) where spread"
    )
    await until(partial(_polls, polling, 2 * len(parts)), 90)
    again = noted(polling.where, "begin")[before:]
    assert sorted(one["partition"] for one in again) == sorted(parts)
    for part in parts:
        waiting = await polling.becomes(f"{name}/schedules/parts.{part}", S.STATE_WAITING)
        assert waiting.next_poll_time.ToDatetime(UTC) > datetime.now(UTC) + timedelta(seconds=300)


async def test_a_deleted_connection_leaves_nothing(polling: Polling) -> None:
    name = await polling.connect("main", every(1))
    await until(lambda: len(noted(polling.where, "end")) >= 1, 60)
    await polling.running.sql("update registry.connections set state = 'deleting'")
    await polling.running.sql("update registry.picture set generation = generation + 1")
    async with open_store(polling.running.settings.worker_database_url, REGISTRY) as worker:
        for _ in range(2):
            await remove_schedules(worker, "acme", "main")
    assert await polling.all(name) == []
    for table in ("schedules", "plans", "checkpoints"):
        assert await polling.running.sql(f"select * from registry.{table}") == []  # noqa: S608 - our own words


async def test_who_cannot_renew_its_claims_ends_its_polls_before_they_are_anybodys(polling: Polling) -> None:
    await polling.connect("main", every(5), word="long")
    await until(lambda: noted(polling.where, "begin"), 60)
    blocker = await asyncpg.connect(polling.running.admin.reveal())
    try:
        async with blocker.transaction():
            await blocker.execute("lock table registry.schedules in access exclusive mode")
            (lease,) = await blocker.fetch("select lease_time, now() as now from registry.schedules")
            await until(lambda: noted(polling.where, "end"), 60)
            assert noted(polling.where, "end")[0]["time"] < lease["lease_time"].timestamp()
    finally:
        await blocker.close()
    await until(lambda: len(noted(polling.where, "begin")) == 2, 60)
    first, second = next(iter(spans(noted(polling.where)).values()))
    assert first.end is not None
    assert first.end < second.begin


async def test_what_cannot_be_polled_so_is_refused(polling: Polling) -> None:
    for streams, words in [
        ([StreamChoice(stream="nothing")], "there is items, parts"),
        ([every(0.5)], "every 1 s at most"),
        ([every(60), every(60)], "chosen twice"),
        ([every(60, include=["a*"])], "no partitions"),
        ([every(60, "parts", exclude=[""])], "1 to 256 characters"),
    ]:
        with pytest.raises(Problem, match=words) as refused:
            await polling.connect("main", *streams)
        assert refused.value.code is Code.INVALID_ARGUMENT, words


async def test_what_cannot_be_ordered_is_refused_by_name(polling: Polling) -> None:
    name = await polling.connect("main", every(3600))
    await polling.becomes(f"{name}/schedules/items", S.STATE_WAITING)

    async def refused(method: str, request: Any, principal: Any = OPERATOR) -> tuple[Code, str]:
        with pytest.raises(Problem) as problem:
            await polling.ask(method, request, principal)
        return problem.value.code, problem.value.sentence

    nowhere = f"{name}/schedules/nothing"
    for method, kind in (
        ("GetSchedule", pb.GetScheduleRequest),
        ("RunSchedule", pb.RunScheduleRequest),
        ("ResetSchedule", pb.ResetScheduleRequest),
        ("CancelBackfill", pb.CancelBackfillRequest),
    ):
        assert (await refused(method, kind(name=nowhere)))[0] is Code.NOT_FOUND
        assert (await refused(method, kind(name="x")))[0] in {Code.INVALID_ARGUMENT, Code.TENANT_UNNAMED}
        assert (await refused(method, kind(name=nowhere), FOREIGN))[0] is Code.TENANT_FOREIGN
    cancel = pb.CancelBackfillRequest(name=f"{name}/schedules/items")
    assert (await refused("CancelBackfill", cancel))[0] is Code.INVALID_ARGUMENT
    past = pb.StartBackfillRequest(parent=name, stream="items")
    assert "start_time" in (await refused("StartBackfill", past))[1]
    past.start_time.FromDatetime(datetime(2026, 1, 2, tzinfo=UTC))
    past.end_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    assert "ends before it begins" in (await refused("StartBackfill", past))[1]
    past.end_time.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    assert "yet to come" in (await refused("StartBackfill", past))[1]
    past.stream = "nothing"
    past.end_time.FromDatetime(datetime(2026, 1, 3, tzinfo=UTC))
    assert "these can: items, parts" in (await refused("StartBackfill", past))[1]
    past.stream = "parts"
    assert (await refused("StartBackfill", past))[0] is Code.STATE_REFUSES
    nul = pb.StartBackfillRequest(
        parent=name, stream="it\0ems", start_time=past.start_time, end_time=past.end_time
    )
    assert (await refused("StartBackfill", nul))[0] is Code.INVALID_ARGUMENT
    assert (await refused("GetSchedule", pb.GetScheduleRequest(name=f"{name}/schedules/\0")))[0] is (
        Code.INVALID_ARGUMENT
    )
    token = base64.urlsafe_b64encode(b"main/\0").decode()
    listing = pb.ListSchedulesRequest(parent=name, page_token=token)
    assert (await refused("ListSchedules", listing))[0] is Code.INVALID_ARGUMENT
    polling.running.audit.away = True
    run = pb.RunScheduleRequest(name=f"{name}/schedules/items")
    due = (await polling.get(run.name)).next_poll_time
    assert (await refused("RunSchedule", run))[0] is Code.DEPENDENCY_UNAVAILABLE
    assert (await polling.get(run.name)).next_poll_time == due, "what cannot be recorded is not done"


async def test_lists_come_in_pages_over_all_connections(polling: Polling) -> None:
    (polling.where / "parts").write_text("a b c")
    one = await polling.connect("one", every(3600, "parts"), every(3600))
    two = await polling.connect("two", every(3600))
    for name in (f"{one}/schedules/parts.c", f"{two}/schedules/items"):
        await polling.becomes(name, S.STATE_WAITING, S.STATE_RUNNING)
    parent, token, names = "tenants/acme/connections/-", "", list[str]()
    for _ in range(10):
        request = pb.ListSchedulesRequest(parent=parent, page_size=2, page_token=token)
        page = await polling.ask("ListSchedules", request, VIEWER)
        names += [found.name for found in page.schedules]
        token = page.next_page_token
        if not token:
            break
    assert names == [
        *(f"{one}/schedules/{last}" for last in ("items", "parts", "parts.a", "parts.b", "parts.c")),
        f"{two}/schedules/items",
    ]
    assert [found.stream for found in await polling.all(parent, stream="items")] == ["items"] * 2
