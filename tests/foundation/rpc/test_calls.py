"""What is true around every request: budgets, problems, repetition, measure, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import propagate, trace
from structlog.testing import capture_logs

from foundation.errors import Code, Problem
from foundation.process.testing import until
from foundation.rpc import connect, streaming
from foundation.rpc.deadline import RESERVE, budget
from foundation.telemetry import Metrics
from tests.foundation.rpc import toy
from tests.foundation.rpc.conftest import VIEWER_OF_ACME, Running, make_server


async def test_a_problem_survives_the_wire(running: Running) -> None:
    async def refuse(*_: Any) -> Any:
        raise Problem(Code.INVALID_ARGUMENT, field="größe", why="x" * 10_000)

    running.servicer.answers["Open"] = refuse
    async with running.as_(None) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question())
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.data["field"] == "größe"
    assert refused.value.data["why"].startswith("xxx")
    assert refused.value.data["why"].endswith("…")


async def test_what_nobody_foresaw_says_a_reference_and_nothing_of_the_inside(running: Running) -> None:
    async def fail(*_: Any) -> Any:
        raise KeyError("hunter2")

    running.servicer.answers["Open"] = fail
    async with running.as_(None) as channel:
        with capture_logs() as logs, pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question())
    assert refused.value.code is Code.INTERNAL
    assert refused.value.data == {"reference": "ref-1"}
    assert "hunter2" not in refused.value.text
    assert [record["reference"] for record in logs if record["log_level"] == "error"] == ["ref-1"]


async def test_a_method_that_is_not_served_yet_says_so(running: Running) -> None:
    async def base(*_: Any) -> Any:
        raise NotImplementedError("Method not implemented!")

    running.servicer.answers["Open"] = base
    async with running.as_(None) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question())
    assert refused.value.code is Code.UNIMPLEMENTED


async def test_a_token_that_is_none_is_refused_even_where_none_is_needed(running: Running) -> None:
    async def broken() -> str:
        return "not.a.token"

    async with connect(str(running.server.address), broken) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question())
    assert refused.value.code is Code.TOKEN_INVALID


async def test_garbage_is_refused_as_a_problem_and_floods_no_log(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async with running.as_(None) as channel:
        unary: Any = channel.unary_unary(f"/{toy.SERVICE}/Open")
        stream: Any = channel.unary_stream(f"/{toy.SERVICE}/Watch")
        for answer in (unary(b"\xff\xff\xff"), anext(aiter(stream(b"\xff\xff\xff")))):
            with pytest.raises(Problem) as refused:
                await answer
            assert refused.value.code is Code.INVALID_ARGUMENT
    assert running.servicer.calls == []
    assert "DecodeError" not in caplog.text


async def test_work_that_cannot_finish_is_not_begun(running: Running) -> None:
    async with running.as_(None) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question(), timeout=0.002)
    assert refused.value.code in (Code.DEADLINE_TOO_SHORT, Code.DEADLINE_EXCEEDED)
    assert running.servicer.calls == []


async def test_what_a_request_calls_gets_less_time_than_the_request_has(running: Running) -> None:
    budgets: list[float] = []

    left: list[float] = []

    async def call_on(_: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        budgets.extend((budget(60), budget(0.01)))
        return toy.Answer()

    running.servicer.answers["Open"] = call_on
    async with running.as_(None) as channel:
        await toy.unary_stub(channel, "Open")(toy.Question(), timeout=30)
    assert 0 < budgets[0] <= left[0] - RESERVE
    assert budgets[1] == 0.01
    assert budget(60) == 60


async def test_a_late_method_is_cut_off(running: Running) -> None:
    cancelled = asyncio.Event()

    async def sleep(*_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    running.servicer.answers["Open"] = sleep
    async with running.as_(None) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Open")(toy.Question(), timeout=2)
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        await cancelled.wait()


@pytest.mark.parametrize(("name", "calls"), [("Open", 3), ("Write", 1)])
async def test_only_what_the_contract_lets_repeat_is_repeated(
    running: Running, name: str, calls: int
) -> None:
    async def be_away(*_: Any) -> Any:
        raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="postgres", why="gone")

    running.servicer.answers[name] = be_away
    async with running.as_(None) as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, name)(toy.Question())
    assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE
    assert running.servicer.calls == [name] * calls


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "before the first answer"])
async def test_leaving_a_stream_early_ends_it_at_the_server(running: Running, way: str) -> None:
    arrived, forever = asyncio.Event(), asyncio.Event()

    async def hold(*_: Any) -> Any:
        if way == "before the first answer" or arrived.is_set():
            arrived.set()
            await forever.wait()

    running.servicer.answers["Watch"] = hold

    async def leave(call: Any) -> None:
        async with streaming(call) as answers:
            async for _ in answers:
                arrived.set()
                if way == "break":
                    break
                if way == "raise":
                    raise KeyError

    async with running.as_(VIEWER_OF_ACME) as channel:
        # Held here, so that it is not its collection that ends it.
        call = toy.stream_stub(channel, "Watch")(toy.Question(tenant="tenants/acme"))
        leaving = asyncio.create_task(leave(call))
        await arrived.wait()
        if way in ("cancel", "before the first answer"):
            leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: running.servicer.stream_ended, 30)
        assert call.cancelled()


async def test_a_stream_that_is_left_before_it_began_is_never_begun(running: Running) -> None:
    async with running.as_(VIEWER_OF_ACME) as channel:
        call = toy.stream_stub(channel, "Watch")(toy.Question(tenant="tenants/acme"))
        async with streaming(call):
            pass
        await until(call.done, 30)
        assert call.cancelled()
    assert running.servicer.calls == []


async def test_a_server_that_is_not_there_is_named(short_dir: Any) -> None:
    async with connect(f"unix:{short_dir}/nobody") as channel:
        with pytest.raises(Problem) as refused:
            await toy.unary_stub(channel, "Write")(toy.Question(), timeout=30)
    assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE
    assert toy.SERVICE in refused.value.text


async def test_two_servers_do_not_share_an_address() -> None:
    async with make_server(Metrics("a")) as first:
        second = make_server(Metrics("b"), address=first.address)
        with pytest.raises(Problem) as refused:
            async with second:
                pass
    assert refused.value.code is Code.ADDRESS_IN_USE


async def test_requests_under_way_finish_before_the_server_goes(
    run: Callable[[], AbstractAsyncContextManager[Running]],
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def take_time(*_: Any) -> Any:
        begun.set()
        await go_on.wait()
        return toy.Answer(text="finished")

    async with run() as running:
        running.servicer.answers["Open"] = take_time
        async with running.as_(None) as channel:
            waiting = asyncio.create_task(_result(toy.unary_stub(channel, "Open")(toy.Question())))
            await begun.wait()
            ending = asyncio.create_task(running.server.__aexit__())
            await asyncio.sleep(0)
            go_on.set()
            assert (await waiting).text == "finished"
            await ending


async def _result(call: Any) -> Any:
    return await call


async def test_each_request_is_measured_by_method_and_code(running: Running) -> None:
    async with running.as_(None) as channel:
        await toy.unary_stub(channel, "Open")(toy.Question())
        with pytest.raises(Problem):
            await toy.unary_stub(channel, "Read")(toy.Question(tenant="tenants/acme"))
    # The answer is on its way before the server has noted it.
    async with asyncio.timeout(30):
        while "tieline_rpc_server_under_way 0.0" not in (text := running.metrics.render().decode()):
            await asyncio.sleep(0)
    path = f"/{toy.SERVICE}"
    assert f'tieline_rpc_server_seconds_count{{code="OK",method="{path}/Open"}} 1.0' in text
    assert f'tieline_rpc_server_seconds_count{{code="UNAUTHENTICATED",method="{path}/Read"}} 1.0' in text
    assert 'tieline_errors_total{code="TOKEN_MISSING"} 1.0' in text


async def test_the_trace_context_travels_without_a_collector(running: Running) -> None:
    seen: list[str] = []

    async def look(*_: Any) -> Any:
        seen.append(format(trace.get_current_span().get_span_context().trace_id, "032x"))
        return toy.Answer()

    running.servicer.answers["Open"] = look
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with trace.use_span(trace.get_current_span(propagate.extract(carrier))):
        async with running.as_(None) as channel:
            await toy.unary_stub(channel, "Open")(toy.Question())
    assert seen == ["0af7651916cd43dd8448eb211c80319c"]


async def test_a_request_in_the_log_shows_no_secret(running: Running) -> None:
    question = toy.Question(
        tenant="tenants/acme", password="hunter2", body=b"hunter2", parts=[toy.Question(password="hunter2")]
    )
    with capture_logs() as logs:
        async with running.as_(VIEWER_OF_ACME) as channel:
            await toy.unary_stub(channel, "Read")(question)
    records = [record for record in logs if record["event"] == "request"]
    assert records[0]["request"]["tenant"] == "tenants/acme"
    assert records[0]["principal"] == "ada"
    assert "hunter2" not in repr(logs)


async def test_a_foreign_client_reads_the_status_with_its_own_tools(running: Running) -> None:
    async with grpc.aio.insecure_channel(str(running.server.address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await toy.unary_stub(channel, "Read")(toy.Question(tenant="tenants/acme"))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer" in (refused.value.details() or "")
