"""The answer to a delivery comes after the commit is on disk: seen from outside, in the system calls."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.scenarios.path import push, receiving
from tests.scenarios.suite import Standing, until

CALL = re.compile(r"^(\d+\.\d+) (\w+)\((.*)$")


def writers(suite: Standing) -> list[int]:
    """PostgreSQL's processes, any of which may write the log ahead, and the gateway, which answers."""
    postgres = suite.child("bin/postgres")
    gateway = next(child for child in psutil.Process(suite.pid).children() if "gateway" in child.cmdline())
    return [gateway.pid, *(process.pid for process in [postgres, *postgres.children(recursive=True)])]


async def test_yes_is_said_after_the_log_was_synced(shared: Standing, tenant: str, short_dir: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace to see system calls with")
    async with receiving(shared, tenant) as acme:
        # Once before, so that everything is warm and the tracer sees one delivery only.
        assert (await acme.send(push(0), "d-0")).status_code == 202
        await acme.stored(1)
        traced = writers(shared)
        # One file for each process, so that no call's line is cut in two by another process's call.
        traces = short_dir / "trace"
        tracer = await asyncio.create_subprocess_exec(
            strace,
            "-ff",
            "-ttt",
            "-s",
            "40",
            "-e",
            "trace=fsync,fdatasync,read,recvfrom,recvmsg,sendto,write,writev,sendmsg",
            "-o",
            str(traces),
            *[argument for pid in traced for argument in ("-p", str(pid))],
            stderr=subprocess.PIPE,
        )
        assert tracer.stderr is not None
        try:
            for _ in traced:
                said = await asyncio.wait_for(tracer.stderr.readline(), 30)
                if b"not permitted" in said:
                    pytest.skip("this machine lets nobody trace processes")
                assert b" attached" in said, said.decode()
            answer = await acme.send(push(1), "d-1")
            assert answer.status_code == 202
            await until(lambda: _moments(traces, traced[0])["answered"], 30)
        finally:
            tracer.send_signal(signal.SIGINT)
            await tracer.wait()
        seen = _moments(traces, traced[0])
        [received], [answered] = seen["received"], seen["answered"]
        synced = [at for at in seen["synced"] if received < at < answered]
        assert synced, (
            f"the gateway answered {answered - received:.4f} s after the request, and nothing was synced"
        )


def _moments(traces: Path, gateway: int) -> dict[str, list[float]]:
    """When the request reached the gateway, when the log was synced, when the gateway answered."""
    seen: dict[str, list[float]] = {"received": [], "synced": [], "answered": []}
    for trace in traces.parent.glob(f"{traces.name}.*"):
        answering = trace.name == f"{traces.name}.{gateway}"
        for line in trace.read_text(errors="replace").splitlines():
            if not (call := CALL.match(line)):
                continue
            at, name, rest = float(call[1]), call[2], call[3]
            if name in ("fsync", "fdatasync"):
                seen["synced"].append(at)
            elif answering and "POST /hooks/" in rest:
                seen["received"].append(at)
            elif answering and "HTTP/1.1 202" in rest:
                seen["answered"].append(at)
    return seen
