"""How long `tieline up` takes to `ready`, and what each of its processes takes of memory.

Cold: an empty data directory, so a cluster is made and every schema migrated. Warm: the same data again.
Memory is the proportional set size once everything has been ready for a moment: shared pages count once.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.kit.measure import Line
from bench.kit.up import up

REPETITIONS = 5


def run() -> list[Line]:
    cold: list[float] = []
    warm: list[float] = []
    stop: list[float] = []
    memory: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        with tempfile.TemporaryDirectory(prefix="tl-bench-", dir="/tmp") as data:
            for times in (cold, warm):
                began = time.monotonic()
                with up(Path(data)) as process:
                    times.append(time.monotonic() - began)
                    if times is warm:
                        for name, size in _memory(process):
                            memory.setdefault(name, []).append(size)
                    began = time.monotonic()
                stop.append(time.monotonic() - began)
    return [
        Line("warm start", warm, "s"),
        Line("cold start", cold, "s"),
        Line("stop", stop, "s"),
        *(Line(f"memory of {name}", sizes, "MiB") for name, sizes in memory.items()),
    ]


def _memory(up: psutil.Process) -> Iterator[tuple[str, float]]:
    yield "tieline up", _pss([up])
    for child in up.children():
        arguments = " ".join(child.cmdline())
        names = ("credentials", "registry", "mapper", "gateway", "nats", "postgres")
        name = next(
            name
            for name in names
            if f"services.{name}" in arguments or f"/{name}" in arguments or f" {name} " in arguments
        )
        yield name, _pss([child, *child.children(recursive=True)])


def _pss(processes: list[psutil.Process]) -> float:
    return float(sum(process.memory_full_info().pss for process in processes)) / 1024**2
