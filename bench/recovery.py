"""A busy plugin killed with SIGKILL: milliseconds to the next call that succeeds, of ten kills.

Eight callers keep the plugin busy, each asking again at once. The control is what a call takes while nothing
happens. Every kill has a host of its own, since whoever dies often is started again with patience. Callers,
broker and plugin share this machine.
"""

import asyncio
import os
import signal
import time

from bench.kit.github import ONE, group, hosted, pushes
from bench.kit.measure import Line
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.host.host import Host

KILLS, CALLERS = 10, 8


def run() -> list[Line]:
    return asyncio.run(_measure())


async def _measure() -> list[Line]:
    undisturbed: list[float] = []
    recovered: list[float] = []
    for _ in range(KILLS):
        async with hosted() as host:
            await _kill_one(host, undisturbed, recovered)
    return [
        Line("control, a call while nothing happens", undisturbed, "ms"),
        Line("kill -9 to the next call that succeeds", recovered, "ms"),
    ]


async def _kill_one(host: Host, undisturbed: list[float], recovered: list[float]) -> None:
    broker, process, some = Broker(host, FixedConnections(ONE)), host.processes[ONE.plugin], group(pushes(10))
    succeeded: list[tuple[float, float]] = []

    async def call() -> None:
        while True:
            began = time.perf_counter()
            (result,) = await broker.transform([some])
            if result.outcomes:
                succeeded.append((began, time.perf_counter()))
            else:
                await asyncio.sleep(0.001)

    callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
    while len(succeeded) < 200:
        await asyncio.sleep(0.01)
    undisturbed.extend((end - began) * 1000 for began, end in succeeded[-100:])
    pid, killed = process.pid, time.perf_counter()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    # A call that began before the kill may still have its answer from the dead.
    while not (after := [end for began, end in succeeded if began > killed]):
        await asyncio.sleep(0.001)
    recovered.append((after[0] - killed) * 1000)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
