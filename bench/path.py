"""The whole path under load: deliveries accepted per second, from signature to fsync, and from sender to subscriber.

Loader, engines and every process share this machine. The control is the same handler, signature check and
all, that stores nothing: what is left to the first line is what durability and the rest of the path cost.
"""

import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from bench.kit.load import request, send
from bench.kit.measure import Line
from bench.kit.null_edge import SECRET
from foundation.identity.session import Session
from foundation.process.ports import Port
from foundation.rpc import Connection, connect
from tieline.mapper.v1 import events_pb2_grpc, subscriptions_pb2_grpc
from tieline.mapper.v1.events_pb2 import ListEventsRequest
from tieline.mapper.v1.subscriptions_pb2 import SubscribeRequest

REPETITIONS, DELIVERIES = 3, 4000
PACED, PACE = 300, 50.0
NAMES = ("gateway", "mapper", "registry", "credentials", "postgres", "nats")


def run() -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="tl-bench-", dir="/tmp") as directory:
        data = Path(directory)
        with _installation(data) as up, _null_edge() as null:
            hook = _prepare(data)
            return asyncio.run(_measure(data, hook, null, up))


async def _measure(data: Path, hook: str, null: str, up: psutil.Process) -> list[Line]:
    numbers = iter(range(10_000_000))
    lines: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        for connections in (32, 128):
            for what, target in (("stored", hook), ("control, stores nothing", null)):
                wires = [request(target, next(numbers), SECRET) for _ in range(DELIVERIES)]
                before = _cpu(up)
                load = await send(target, wires, connections)
                assert load.refused == 0, f"{load.refused} were refused"
                lines.setdefault(f"{what}, {connections} connections", []).append(DELIVERIES / load.seconds)
                if target == hook:
                    await _drained(data)
                    for name, seconds in _cpu(up).items():
                        cpu.setdefault(name, []).append((seconds - before[name]) / DELIVERIES * 1000)
    wires = [request(hook, next(numbers), SECRET) for _ in range(PACED)]
    delays = await _end_to_end(data, hook, wires)
    return [
        *(Line(what, values, "/s") for what, values in lines.items()),
        Line(f"sender to subscriber at {PACE:g}/s, p50", [statistics.median(delays) * 1000], "ms"),
        Line(f"sender to subscriber at {PACE:g}/s, p99", [sorted(delays)[int(PACED * 0.99)] * 1000], "ms"),
        *(Line(f"CPU of {name} for 1,000", values, "s") for name, values in cpu.items()),
    ]


@contextmanager
def _installation(data: Path) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "cli", "up", "--data", str(data), "--http", "127.0.0.1:0"]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert up.stdout is not None
        assert up.stdout.readline().startswith("ready ")
        yield psutil.Process(up.pid)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


@contextmanager
def _null_edge() -> Iterator[str]:
    with Port() as port:
        command = [sys.executable, "-m", "bench.kit.null_edge", str(port.number)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as edge:
            assert edge.stdout is not None
            assert edge.stdout.readline() == "ready\n"
            yield f"http://{port.address}/hooks/null"


def _prepare(data: Path) -> str:
    """A tenant with a GitHub connection, made as the README makes one; where its deliveries go."""
    _tieline(data, "tenant", "create", "bench")
    _tieline(data, "credential", "put", "hook", "--kind", "webhook_secret", stdin=SECRET.decode())
    made = _tieline(
        data, "connection", "create", "github", "--plugin", "github", "--credential", "webhook=hook"
    )
    url: str = json.loads(made)["webhook_url"]
    return url


def _tieline(data: Path, *arguments: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "cli", "--data", str(data), "--tenant", "bench", "--json", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def _cpu(up: psutil.Process) -> dict[str, float]:
    """Seconds of processor time so far, children included."""
    used = dict.fromkeys((*NAMES, "plugin"), 0.0)
    for child in up.children():
        arguments = child.cmdline()
        name = next(name for name in NAMES if any(name in part for part in arguments[:3]))
        own = sum(child.cpu_times()[:2])
        below = [sum(process.cpu_times()[:2]) for process in child.children(recursive=True)]
        if name == "registry":
            used["plugin"] += sum(below)
            used[name] += own
        else:
            used[name] += own + sum(below)
    return used


@asynccontextmanager
async def _mapper(data: Path) -> AsyncIterator[Connection]:
    """The mapper's API, as the installation's administrator."""
    endpoints = json.loads(await asyncio.to_thread((data / "run/endpoints.json").read_text))
    token = await asyncio.to_thread(Path(endpoints["admin_token_file"]).read_text)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(connect(endpoints["credentials"]))
        token_source = Session(plain, token.strip()).token
        yield await stack.enter_async_context(connect(endpoints["mapper"], token_source))


async def _drained(data: Path) -> None:
    """Until everything that was accepted has become an event: the work is not over with the answer."""
    async with _mapper(data) as mapper:
        stub = events_pb2_grpc.EventServiceStub(mapper)
        newest, still = "", time.monotonic()
        while time.monotonic() - still < 1.0:
            page = await stub.ListEvents(ListEventsRequest(parent="tenants/bench", page_size=1))
            found = page.events[0].id if page.events else ""
            if found != newest:
                newest, still = found, time.monotonic()
            await asyncio.sleep(0.1)


async def _end_to_end(data: Path, hook: str, wires: list[bytes]) -> list[float]:
    """Seconds from the moment a delivery is sent until its event is told, one by one at an easy pace."""
    heard: list[float] = []
    sent: list[float] = []
    async with _mapper(data) as mapper:
        stub = subscriptions_pb2_grpc.SubscriptionServiceStub(mapper)
        listening = asyncio.create_task(_listen(stub, len(wires), heard))
        await asyncio.sleep(1.0)
        for wire in wires:
            sent.append(time.perf_counter())
            await send(hook, [wire], 1)
            await asyncio.sleep(max(0.0, sent[-1] + 1 / PACE - time.perf_counter()))
        await asyncio.wait_for(listening, 60)
    # One sender, one connection, one ordering key: the order of sending is the order of hearing.
    return [told - began for began, told in zip(sent, heard, strict=True)]


async def _listen(
    stub: subscriptions_pb2_grpc.SubscriptionServiceStub, count: int, heard: list[float]
) -> None:
    async for told in stub.Subscribe(SubscribeRequest(parent="tenants/bench")):  # type: ignore[attr-defined]
        heard.extend([time.perf_counter()] * len(told.events))
        if len(heard) >= count:
            return
