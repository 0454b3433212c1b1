from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from foundation.errors import Code, Problem
from foundation.settings import Address
from foundation.telemetry import Metrics, Readiness
from foundation.telemetry.http import application, serve_http
from foundation.telemetry.ops import routes


async def fine() -> None: ...


async def gone() -> None:
    raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="nats", why="refused")


async def hang() -> None:
    await asyncio.Event().wait()


async def break_down() -> None:
    raise KeyError("hunter2")


async def test_readiness_names_each_dependency() -> None:
    checks = {"a": fine, "b": gone, "c": hang, "d": break_down}
    report = await Readiness(checks, deadline=0.05).report()
    assert not report.ready
    assert dict(report.dependencies) == {
        "a": "ok",
        "b": "nats cannot be reached: refused.",
        "c": "no answer within 0.05 s",
        "d": "its check failed (KeyError)",
    }
    assert (await Readiness({"a": fine}).report()).ready


async def test_dependencies_are_asked_side_by_side() -> None:
    met = asyncio.Barrier(3)

    async def meet() -> None:
        await met.wait()

    assert (await Readiness({"a": meet, "b": meet, "c": meet}).report()).ready


async def test_a_crowd_that_asks_is_one_question_to_each_dependency() -> None:
    asked, answer = 0, asyncio.Event()

    async def ask() -> None:
        nonlocal asked
        asked += 1
        await answer.wait()

    readiness = Readiness({"a": ask})
    crowd = [asyncio.create_task(readiness.report()) for _ in range(20)]
    await asyncio.sleep(0)
    crowd[0].cancel()  # one who leaves takes nobody's answer along
    await asyncio.sleep(0)
    answer.set()
    assert all(report.ready for report in await asyncio.gather(*crowd[1:]))
    assert asked == 1
    assert (await readiness.report()).ready
    assert asked == 2


async def test_operators_get_health_readiness_and_metrics() -> None:
    metrics, readiness = Metrics("toy"), Readiness({"a": fine})
    app = application(routes(readiness, metrics))
    async with serve_http(app, Address("127.0.0.1", 0), 1) as address, httpx.AsyncClient() as client:
        base = f"http://{address}"
        assert (await client.get(f"{base}/healthz")).json() == {"status": "alive"}
        ready = await client.get(f"{base}/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "dependencies": {"a": "ok"}})
        assert 'tieline_ready{service="toy"} 1.0' in (await client.get(f"{base}/metrics")).text
        readiness.stop()
        going = await client.get(f"{base}/readyz")
        assert (going.status_code, going.json()["status"]) == (503, "not ready")
        assert (await client.get(f"{base}/healthz")).status_code == 200


LOGGING = """
import logging
import structlog
from foundation.settings import Secret
from foundation.telemetry import configure_logs
configure_logs("toy", "info", {style!r})
log = structlog.get_logger("toy")
log.info("hello", tenant="acme", token="hunter2", dsn=Secret("hunter2"), page_token="p1")
log.info("deep", request=dict(name="x", spec=dict(password="hunter2")))
log.debug("not shown")
logging.getLogger("somebody").warning("foreign %s", "words")
def fail(value):
    return len(value) / 0
try:
    fail("hunter" + "2")
except ZeroDivisionError:
    log.exception("failed")
"""


@pytest.mark.parametrize("style", ["json", "text"])
def test_logs_are_for_machines_or_people_and_never_hold_a_secret(style: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOGGING.format(style=style)], capture_output=True, text=True, check=True
    )
    assert run.stdout == ""
    assert "hunter2" not in run.stderr
    assert "not shown" not in run.stderr
    if style == "json":
        records = [json.loads(line) for line in run.stderr.splitlines()]
        assert [record["event"] for record in records] == ["hello", "deep", "foreign words", "failed"]
        assert all(record["service"] == "toy" and record["timestamp"] for record in records)
        assert records[0]["token"] == "…"
        assert records[0]["page_token"] == "p1"
        assert records[1]["request"] == {"name": "x", "spec": {"password": "…"}}
        assert records[3]["exception"][0]["exc_type"] == "ZeroDivisionError"
    else:
        assert "hello" in run.stderr
        assert "ZeroDivisionError" in run.stderr


def test_no_collector_no_cost() -> None:
    """Without a collector the SDK and the exporter are not even imported."""
    code = """
import asyncio, sys
from foundation.telemetry import open_traces
async def main():
    async with open_traces("toy", None) as tracer:
        with tracer.start_as_current_span("x") as span:
            assert not span.is_recording()
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk.trace.export")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
