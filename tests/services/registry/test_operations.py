"""Operations through the registry's own API: checked, kept, run once by a real plugin, read, taken back, resolved."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.process.testing import until
from foundation.rpc import Connection as Channel
from tests.services.registry.acting import (
    CONNECTION,
    acting_registry,
    effects,
    every,
    found,
    lines,
    state,
    submit,
    wanted,
)
from tests.services.registry.conftest import FOREIGN, OPERATOR, VIEWER, Running
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.registry.v1.operations_pb2 import (
    CancelOperationRequest,
    ListOperationsRequest,
    Operation,
    ResolveOperationRequest,
    RetryOperationRequest,
    WatchOperationRequest,
)
from tieline.registry.v1.operations_pb2_grpc import OperationServiceStub


@pytest.fixture
async def acting(engines: Served, tmp_path: Path) -> AsyncIterator[Running]:
    async with acting_registry(engines, tmp_path) as running:
        yield running


@pytest.fixture
async def channel(acting: Running) -> AsyncIterator[Channel]:
    async with acting.as_(OPERATOR) as channel:
        yield channel


async def ended(channel: Channel, operation: Operation) -> Operation:
    """As the stream tells it when it is over."""
    last = operation
    async with asyncio.timeout(60):
        async for told in OperationServiceStub(channel).WatchOperation(
            WatchOperationRequest(name=operation.name)
        ):
            last = told.operation
    return last


async def reached(channel: Channel, operation: Operation, *states: str) -> Operation:
    async def there() -> bool:
        return state(await found(channel, operation)) in states

    await until(there, 60)
    return await found(channel, operation)


async def refusal(call: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        await call
    return refused.value


async def test_an_action_is_run_and_says_what_came_of_it(
    acting: Running, channel: Channel, tmp_path: Path
) -> None:
    made = await submit(channel, "put", "one", n=1)
    assert state(made) in {"QUEUED", "RUNNING", "SUCCEEDED"}
    done = await ended(channel, made)
    assert (state(done), json.loads(done.output), done.attempts) == ("SUCCEEDED", {"id": "one"}, 1)
    assert (done.written[0].id, done.author, done.action) == ("one", "users/bob", "put")
    assert not done.HasField("next_attempt_time")
    (asked,) = lines(tmp_path, "asked")
    assert (asked["key"], asked["attempt"]) == ("one", 1)
    submitted = [said for said in acting.audit.said if said[0] == "operation.submit"]
    assert submitted == [
        ("operation.submit", made.name, "INTENT"),
        ("operation.submit", made.name, "DONE"),
    ]
    assert "how" not in str(acting.audit.records)


async def test_one_key_is_one_operation_however_often_it_is_submitted(
    acting: Running, channel: Channel, tmp_path: Path
) -> None:
    many = await asyncio.gather(*(submit(channel, "post", "same", n=1) for _ in range(8)))
    assert len({one.name for one in many}) == 1
    await ended(channel, many[0])
    again = await submit(channel, "post", "same", n=1)
    assert (again.name, state(again)) == (many[0].name, "SUCCEEDED")
    assert effects(tmp_path, "same") == 1
    reused = await refusal(submit(channel, "post", "same", n=2))
    assert (reused.code, reused.meaning.grpc) == (Code.KEY_REUSED, "INVALID_ARGUMENT")
    other = await submit(channel, "put", "same", n=2)
    assert other.name != many[0].name, "a key belongs to one action"
    await acting.sql("update registry.operations set create_time = create_time - interval '8 days'")
    later = await submit(channel, "post", "same", n=2)
    assert later.name not in {many[0].name, other.name}, "a key is kept for seven days"


async def test_what_cannot_be_is_refused_with_its_place(acting: Running, channel: Channel) -> None:
    for request_, field, word in [
        (wanted("post", n="no number"), "operation.arguments", "/n"),
        (wanted("post", strange=1), "operation.arguments", "strange"),
        (wanted("fly"), "operation.action", "post, put, pay"),
        (wanted("post", "k" * 129), "operation.idempotency_key", "128"),
        (wanted("post", "schlüssel"), "operation.idempotency_key", "ASCII"),
        (wanted("post", connection="tenants/acme/connections/none"), "operation.connection", "list"),
        (wanted("post", connection="tenants/other/connections/main"), "operation.connection", "another"),
        (wanted("post", connection="main"), "operation.connection", "form"),
        (wanted("post", order="x" * 300), "operation.ordering_key", "256"),
    ]:
        problem = await refusal(OperationServiceStub(channel).SubmitOperation(request_))
        assert (problem.code, problem.data["field"]) == (Code.INVALID_ARGUMENT, field), word
        assert word in problem.data["why"]
    assert await every(channel) == []
    assert not [said for said in acting.audit.said if said[0].startswith("operation")]


async def test_a_deadline_lies_ahead_and_not_too_far(channel: Channel) -> None:
    for seconds in (1, 2**33):
        request = wanted("post")
        request.operation.start_deadline.seconds = seconds
        problem = await refusal(OperationServiceStub(channel).SubmitOperation(request))
        assert problem.data["field"] == "operation.start_deadline"


async def test_trying_it_out_changes_nothing(channel: Channel, tmp_path: Path) -> None:
    request = wanted("post", "tried", n=1)
    request.validate_only = True
    shown = await OperationServiceStub(channel).SubmitOperation(request)
    assert (state(shown), shown.idempotency_key) == ("QUEUED", "tried")
    assert await every(channel) == []
    request.operation.arguments = b"[]"
    assert (
        await refusal(OperationServiceStub(channel).SubmitOperation(request))
    ).code is Code.INVALID_ARGUMENT
    assert not lines(tmp_path, "asked")


async def test_what_cannot_be_recorded_is_not_done(acting: Running, channel: Channel) -> None:
    acting.audit.away = True
    assert (await refusal(submit(channel, "post", "unseen"))).code is Code.DEPENDENCY_UNAVAILABLE
    acting.audit.away = False
    assert await every(channel) == []


async def test_who_may_do_what(acting: Running, channel: Channel) -> None:
    made = await submit(channel, "put", "mine")
    async with acting.as_(VIEWER) as viewer:
        assert (await found(viewer, made)).name == made.name
        assert (await refusal(submit(viewer, "put"))).code is Code.ROLE_MISSING
        cancel = OperationServiceStub(viewer).CancelOperation(CancelOperationRequest(name=made.name))
        assert (await refusal(cancel)).code is Code.ROLE_MISSING
    async with acting.as_(FOREIGN) as foreign:
        assert (await refusal(found(foreign, made))).code is Code.TENANT_FOREIGN
        assert (await refusal(every(foreign))).code is Code.TENANT_FOREIGN


async def test_a_list_has_pages_newest_first_and_filters(channel: Channel) -> None:
    made = [await submit(channel, "put", f"k{number}") for number in range(5)]
    for one in made:
        await ended(channel, one)
    refused = await ended(channel, await submit(channel, "put", "bad", how="refused"))
    assert (state(refused), refused.failure.kind) == ("FAILED", FailureKind.FAILURE_KIND_CONFLICT)
    stub, names, token = OperationServiceStub(channel), [], ""
    while True:
        request = ListOperationsRequest(parent="tenants/acme", page_size=2, page_token=token)
        page = await stub.ListOperations(request)
        names += [one.name for one in page.operations]
        token = page.next_page_token
        if not token:
            break
    assert names == [refused.name, *(one.name for one in reversed(made))]
    assert [one.name for one in await every(channel, states=[Operation.STATE_FAILED])] == [refused.name]
    assert await every(channel, connection="tenants/acme/connections/other") == []
    assert len(await every(channel, connection=CONNECTION)) == 6
    broken = ListOperationsRequest(parent="tenants/acme", page_token="eA==")
    assert (await refusal(stub.ListOperations(broken))).data["field"] == "page_token"


async def test_what_has_not_begun_can_be_taken_back(
    acting: Running, channel: Channel, tmp_path: Path
) -> None:
    (tmp_path / "offline").touch()
    stub = OperationServiceStub(channel)
    made = await submit(channel, "post", "late")
    await until(lambda: lines(tmp_path, "asked"))
    waiting = await reached(channel, made, "QUEUED")
    taken = await stub.CancelOperation(CancelOperationRequest(name=waiting.name))
    assert state(taken) in {"CANCELLED", "RUNNING"}
    taken = await ended(channel, made)
    assert state(taken) == "CANCELLED"
    assert state(await stub.CancelOperation(CancelOperationRequest(name=made.name))) == "CANCELLED"
    assert (
        await refusal(stub.RetryOperation(RetryOperationRequest(name=made.name)))
    ).code is Code.STATE_REFUSES
    assert effects(tmp_path, "late") == 0
    assert ("operation.cancel", made.name, "DONE") in acting.audit.said


async def test_a_person_may_have_it_tried_once_more(channel: Channel, tmp_path: Path) -> None:
    stub = OperationServiceStub(channel)
    refused = await ended(channel, await submit(channel, "put", "again", how="refused"))
    again = await stub.RetryOperation(RetryOperationRequest(name=refused.name))
    assert state(again) in {"QUEUED", "RUNNING", "FAILED"}
    await until(lambda: len(lines(tmp_path, "asked")) == 2)
    assert {one["key"] for one in lines(tmp_path, "asked")} == {"again"}
    done = await ended(channel, await submit(channel, "put", "done"))
    for call in (
        stub.RetryOperation(RetryOperationRequest(name=done.name)),
        stub.ResolveOperation(ResolveOperationRequest(name=done.name, applied=True)),
        stub.CancelOperation(CancelOperationRequest(name=done.name)),
    ):
        assert (await refusal(call)).code is Code.STATE_REFUSES


async def test_what_nobody_can_tell_is_a_persons_to_resolve(
    acting: Running, channel: Channel, tmp_path: Path
) -> None:
    stub = OperationServiceStub(channel)
    vague = await reached(channel, await submit(channel, "post", "vague", how="vague"), "AMBIGUOUS")
    await until(lambda: lines(tmp_path, "questions"))
    assert state(await found(channel, vague)) == "AMBIGUOUS"
    early = await refusal(stub.RetryOperation(RetryOperationRequest(name=vague.name)))
    assert "resolve" in early.text
    long = ResolveOperationRequest(name=vague.name, applied=True, reason="x" * 300)
    assert (await refusal(stub.ResolveOperation(long))).data["field"] == "reason"
    request = ResolveOperationRequest(name=vague.name, applied=True, reason="I saw it there")
    assert state(await stub.ResolveOperation(request)) == "SUCCEEDED"
    assert state(await stub.ResolveOperation(request)) == "SUCCEEDED", "the same word again"
    record = next(one for one in acting.audit.records if one.action == "operation.resolve")
    assert dict(record.details) == {"applied": "true", "reason": "I saw it there"}
    denied = await reached(channel, await submit(channel, "post", "vague2", how="vague"), "AMBIGUOUS")
    request = ResolveOperationRequest(name=denied.name, applied=False)
    assert state(await stub.ResolveOperation(request)) == "FAILED"
    assert effects(tmp_path, "vague") == 1


async def test_work_that_goes_on_at_the_provider_is_asked_about(channel: Channel, tmp_path: Path) -> None:
    made = await reached(channel, await submit(channel, "post", "long", how="long"), "PENDING")
    assert made.HasField("next_attempt_time")
    await until(lambda: len(lines(tmp_path, "questions")) > 2)
    assert {one["pending"] for one in lines(tmp_path, "questions")} == {"job-7"}
    (tmp_path / "finished").touch()
    done = await ended(channel, made)
    assert (state(done), json.loads(done.output), done.attempts) == ("SUCCEEDED", {"id": "long"}, 1)
    (tmp_path / "failed").touch()
    failed = await ended(channel, await submit(channel, "post", "long2", how="long"))
    assert (state(failed), failed.failure.reason) == ("FAILED", "TOO_LATE")


async def test_a_watcher_hears_what_another_replica_did(acting: Running, channel: Channel) -> None:
    made = await submit(channel, "post", "watched", how="gated")
    await reached(channel, made, "RUNNING")
    watching = asyncio.create_task(ended(channel, made))
    await asyncio.sleep(0)
    await acting.sql(
        "update registry.operations set state = 'succeeded', due_time = null, changes = changes + 1, claim = 99"
    )
    assert state(await watching) == "SUCCEEDED"


async def test_figures_tell_what_waits_and_what_ended(acting: Running, channel: Channel) -> None:
    await ended(channel, await submit(channel, "put", "figure"))
    http = acting.settings.http
    reader, writer = await asyncio.open_connection(http.host, http.port)
    writer.write(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
    told = (await asyncio.wait_for(reader.read(), 30)).decode()
    writer.close()
    assert 'tieline_operations_ended_total{state="succeeded"} 1.0' in told
    assert 'tieline_operation_attempts_total{outcome="succeeded"} 1.0' in told
    assert 'tieline_operations{state="queued"}' in told


async def test_a_paused_connection_makes_its_operations_wait(
    acting: Running, channel: Channel, tmp_path: Path
) -> None:
    turn = "update registry.picture set generation = generation + 1"
    await acting.sql("update registry.connections set state = 'paused'")
    await acting.sql(turn)
    waiting: list[Operation] = []

    async def refused() -> bool:
        """The registry reads of a change at another replica within a second."""
        if waiting and (await found(channel, waiting[-1])).failure.reason == "PAUSED":
            return True
        if not waiting or state(await found(channel, waiting[-1])) == "SUCCEEDED":
            waiting.append(await submit(channel, "post", f"paused-{len(waiting)}"))
        return False

    await until(refused, 60)
    made = await found(channel, waiting[-1])
    assert (made.attempts, effects(tmp_path, made.idempotency_key)) == (0, 0)
    await acting.sql("update registry.connections set state = 'active'")
    await acting.sql(turn)
    assert state(await ended(channel, made)) == "SUCCEEDED"


async def test_a_page_ends_before_it_is_too_large_to_send(acting: Running, channel: Channel) -> None:
    large = "x" * 900_000
    await acting.sql(
        "insert into registry.operations (tenant, id, connection, action, arguments, idempotency_key, repeats,"
        " author, cause, ordering_key, start_deadline, create_time, state, state_time, timeout_seconds) select 'acme', n::text,"
        " $1, 'put', $2, n::text, 'checked', '', '', '', now(), now(), 'succeeded', now(), 30"
        " from generate_series(1, 50) n",
        CONNECTION,
        large.encode(),
    )
    stub, names, token, pages = OperationServiceStub(channel), set(), "", 0
    while True:
        request = ListOperationsRequest(parent="tenants/acme", page_size=1000, page_token=token)
        page = await stub.ListOperations(request)
        pages, token = pages + 1, page.next_page_token
        names |= {one.name for one in page.operations}
        assert page.ByteSize() < 12 * 1024 * 1024
        if not token:
            break
    assert (len(names), pages) == (50, 5)
