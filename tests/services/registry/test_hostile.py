"""Plugins that do everything wrong: each alone in its trouble, explained, and ended or started again as designed.

A second plugin serves on through all of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import pytest
import structlog
from structlog.testing import LogCapture

from foundation.process.cgroups import PREFIX, Cgroups
from foundation.process.output import Line
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import State
from foundation.process.testing import alive, gone, until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.host.described import described
from services.registry.host.host import Host
from services.registry.host.process import PluginProcess
from services.registry.host.watchdog import Patience
from tests.services.registry.plugins import CODE, group, hosting, make_plugin, served, titles
from tieline.registry.v1 import processes_pb2 as pb

WATCHFUL = Patience(look_seconds=0.2, answer_within=1.0, silent_looks=2)

ON_CALL = CODE.replace(
    'case "wait"',
    """case "segfault":
                import ctypes
                ctypes.string_at(0)
            case "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hog":
                import mmap
                held = mmap.mmap(-1, 400 * 1024 * 1024)
                for at in range(0, len(held), 4096): held[at] = 1
                time.sleep(60)
            case "greed":
                return bytearray(2_000_000_000)
            case "wait\"""",
)
GARBAGE = """
import os, time
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

def answer(_request, _context):
    return b"\\xff\\xff not a message"

class Anything(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(answer) if "PluginService" in call.method else None

server = grpc.server(futures.ThreadPoolExecutor(2))
state = health.HealthServicer()
state.set("", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(state, server)
server.add_generic_rpc_handlers((Anything(),))
server.add_insecure_port(os.environ["TIELINE_PLUGIN_ADDRESS"])
server.start()
server.wait_for_termination()
"""
LYING = CODE.replace(
    "if __name__",
    """from tieline.sdk._convert.service import transform_pb2
transform_pb2.TransformDataResponse.SerializeToString = lambda self: b"\\xff\\xff"

if __name__""",
)
IMPATIENT = '[limits]\nstartup = "2s"'


@asynccontextmanager
async def beside_a_good_one(
    tmp_path: Path, patience: Patience = WATCHFUL, cgroups: Cgroups | None = None
) -> AsyncIterator[tuple[Host, PluginProcess, Broker]]:
    """A host with `bad`, which the test has made, and with `good`, which is called all the time."""
    make_plugin(tmp_path, "good")
    good, bad = served("good"), served("bad")
    async with hosting(tmp_path, patience=patience, cgroups=cgroups) as host:
        broker = Broker(host, FixedConnections(good, bad))
        calls = 0

        async def call() -> None:
            nonlocal calls
            while True:
                (result,) = await broker.transform([group(good, "hello")])
                assert titles(result) == ["hello"], result
                calls += 1

        calling = asyncio.create_task(call())
        await until(lambda: calls, 30)
        pid = host.processes["good"].pid
        yield host, host.processes["bad"], broker
        before = calls
        await until(lambda: calls > before or calling.done(), 30)
        calling.cancel()
        assert (await asyncio.gather(calling, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        assert host.processes["good"].pid == pid
        assert not host.processes["good"].crashes


async def shown(host: Host, process: PluginProcess) -> pb.Process:
    """What an operator is told, as the API tells it."""
    (one,) = (one for one in host.everything() if one is process)
    told = described(one, one.resource, "here")
    assert told.host == "here"
    return told


def quarantined(process: PluginProcess) -> bool:
    return process.state is State.FAILED


def serves_again(process: PluginProcess, starts: int) -> bool:
    return process.state is State.READY and process.starts > starts


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"before": "sys.exit('no such luck')"}, "exited with code 1 before it was ready: no such luck"),
        ({"before": "os.abort()"}, "was killed by SIGABRT before it was ready"),
        ({"before": "x = bytearray(1_000_000_000)"}, "before it was ready: MemoryError"),
        ({"before": "time.sleep(3600)", "rest": IMPATIENT.replace("2s", "0.5s")}, "was not ready within 0.5 s"),
        (
            {"before": "os.environ['TIELINE_PLUGIN_ADDRESS'] += '-other'", "rest": IMPATIENT},
            "was not ready within 2 s: it listens on",
        ),
        ({"code": GARBAGE.replace("{", "{{").replace("}", "}}"), "rest": IMPATIENT}, "it does not answer as a plugin"),
        ({"before": "os.environ['TIELINE_PLUGIN_NONCE'] = 'AAAA'"}, "is not the process that was started"),
    ],
)  # fmt: skip
async def test_who_never_serves_ends_in_quarantine_and_is_explained(
    tmp_path: Path, how: dict[str, str], why: str
) -> None:
    make_plugin(tmp_path, "bad", **how)
    async with beside_a_good_one(tmp_path) as (host, process, _):
        await until(partial(quarantined, process), 90)
        told = await shown(host, process)
        assert told.state == pb.Process.STATE_QUARANTINED
        assert why in told.explanation
        assert "`tieline plugin release bad` or a new version tries again" in told.explanation
        assert told.pid == 0
        assert 1 <= len(told.crashes) <= 5
        assert why in told.crashes[0].reason
        assert told.crashes[0].out_of_memory is ("MemoryError" in why)


async def test_a_release_or_a_new_version_takes_it_out_of_quarantine(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path, "bad", before="sys.exit('no such luck')")
    one = served("bad")
    async with beside_a_good_one(tmp_path) as (host, process, _):
        await until(partial(quarantined, process), 60)
        process.release()
        assert process.state is State.STARTING
        await until(partial(quarantined, process), 60)
        assert process.starts == 10
        make_plugin(tmp_path, "bad", version="1.0.1", folder="bad-again")
        await until(lambda: host.processes["bad"].state is State.READY, 60)
        assert str(host.serving("bad")) == "1.0.1"
        (result,) = await Broker(host, FixedConnections(one)).transform([group(one, "x")])
        assert titles(result) == ["x"]
    assert folder.exists()


@pytest.mark.parametrize(
    ("word", "number", "why", "patience"),
    [
        ("segfault", signal.SIGSEGV, "was killed by SIGSEGV", WATCHFUL),
        ("hang", signal.SIGKILL, "was ended: it did not answer 2 health checks in a row", WATCHFUL),
        (
            "hog",
            signal.SIGKILL,
            "MiB of memory, and 256 MiB is its limit",
            Patience(look_seconds=0.1, silent_looks=100),
        ),
    ],
)
async def test_who_dies_or_hangs_at_a_call_is_started_again(
    tmp_path: Path, word: str, number: int, why: str, patience: Patience
) -> None:
    make_plugin(tmp_path, "bad", code=ON_CALL)
    bad = served("bad")
    async with beside_a_good_one(tmp_path, patience) as (host, process, broker):
        (result,) = await broker.transform([group(bad, "x")])
        assert titles(result) == ["x"]
        launch = process.launch
        assert launch is not None
        # Longer than the watchdog takes: the broker's own patience with one input is another story.
        call = asyncio.create_task(broker.transform([group(bad, word)], within=30.0))
        await until(lambda: process.crashes, 60)
        told = await shown(host, process)
        assert why in told.crashes[-1].reason
        assert told.crashes[-1].signal == number
        assert told.crashes[-1].out_of_memory is (word == "hog")
        await call
        await until(lambda: process.state is State.READY, 60)

        async def of_use_again() -> bool:
            (result,) = await broker.transform([group(bad, "x")])
            return list(titles(result)) == ["x"]

        await until(of_use_again, 60)


async def test_who_asks_for_too_much_memory_is_told_so_and_serves_on(tmp_path: Path) -> None:
    make_plugin(tmp_path, "bad", code=ON_CALL)
    bad = served("bad")
    async with beside_a_good_one(tmp_path) as (_, process, broker):
        (result,) = await broker.transform([group(bad, "greed")])
        assert result.outcomes[0].HasField("failure")
        (result,) = await broker.transform([group(bad, "x")])
        assert titles(result) == ["x"]
        assert not process.crashes


async def test_who_takes_too_much_is_ended_by_the_kernel_where_it_bounds_memory(
    tmp_path: Path, cgroups: Cgroups
) -> None:
    make_plugin(tmp_path, "bad", code=ON_CALL)
    bad = served("bad")
    async with beside_a_good_one(tmp_path, Patience(look_seconds=600.0), cgroups) as (host, process, broker):
        (result,) = await broker.transform([group(bad, "x")])
        assert titles(result) == ["x"]
        call = asyncio.create_task(broker.transform([group(bad, "hog")], within=30.0))
        await until(lambda: process.crashes, 60)
        told = await shown(host, process)
        assert (
            "was killed by SIGKILL: out of memory, of which 256 MiB is its limit" in told.crashes[-1].reason
        )
        assert told.crashes[-1].out_of_memory
        await call
        await until(lambda: process.state is State.READY, 60)
    await until(lambda: not _groups(cgroups), 30)


def _groups(cgroups: Cgroups) -> list[Path]:
    cgroups.sweep()
    return list(cgroups.below.glob(f"{PREFIX}{os.getpid()}-*"))


async def test_what_left_its_group_with_a_clean_environment_is_still_in_its_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroups: Cgroups
) -> None:
    left_file = tmp_path / "left"
    monkeypatch.setenv("HOSTILE_LEFT", str(left_file))
    folder = make_plugin(
        tmp_path, "bad", before=LEAVE_BEHIND.replace("start_new_session", "env={}, start_new_session")
    )
    manifest = (folder / "plugin.toml").read_text()
    (folder / "plugin.toml").write_text(
        manifest.replace("install =", 'pass_env = ["HOSTILE_LEFT"]\ninstall =')
    )
    async with beside_a_good_one(tmp_path, cgroups=cgroups) as (_, process, _):
        await until(lambda: process.state is State.READY, 30)
        (left,) = map(int, left_file.read_text().split())
        assert alive(left)
        process.kill()
        await gone([left], 30)


async def test_an_answer_that_is_no_message_is_its_senders_fault(tmp_path: Path) -> None:
    make_plugin(tmp_path, "bad", code=LYING)
    bad = served("bad")
    async with beside_a_good_one(tmp_path) as (_, process, broker):
        (result,) = await broker.transform([group(bad, "x")])
        failures = [result.failure, *(outcome.failure for outcome in result.outcomes)]
        assert any("no message of the contract" in failure.message for failure in failures)
        assert process.state is State.READY


async def test_a_flood_of_output_holds_up_nobody(tmp_path: Path) -> None:
    flood = "import threading; threading.Thread(target=lambda: [print('x' * 5000) for _ in iter(int, 1)], daemon=True).start()"
    make_plugin(tmp_path, "bad", before=flood)
    bad = served("bad")
    async with beside_a_good_one(tmp_path) as (_, process, broker):
        for _ in range(20):
            (result,) = await broker.transform([group(bad, "x")])
            assert titles(result) == ["x"]
        assert not process.crashes


LEAVE_BEHIND = (
    "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, "
    "stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid, file=open(os.environ['HOSTILE_LEFT'], 'a'))"
)


async def test_what_it_started_and_hid_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_file = tmp_path / "left"
    monkeypatch.setenv("HOSTILE_LEFT", str(left_file))
    folder = make_plugin(tmp_path, "bad", before=LEAVE_BEHIND)
    manifest = (folder / "plugin.toml").read_text()
    (folder / "plugin.toml").write_text(
        manifest.replace("install =", 'pass_env = ["HOSTILE_LEFT"]\ninstall =')
    )
    async with beside_a_good_one(tmp_path) as (_, process, _):
        await until(lambda: process.state is State.READY, 30)
        (left,) = map(int, left_file.read_text().split())
        assert alive(left)
        process.kill()
        await gone([left], 30)
        await until(partial(serves_again, process, 1), 30)
        left = int(left_file.read_text().split()[-1])
        assert alive(left)
    await gone([left], 30)


@pytest.fixture
def logged() -> Iterator[LogCapture]:
    """All that is logged, whatever level an earlier test has set."""
    before, capture = structlog.get_config(), LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    yield capture
    structlog.configure(**before)


async def test_what_it_was_given_and_says_is_covered(tmp_path: Path, logged: LogCapture) -> None:
    canary = b"canary-3f9a1c"
    make_plugin(tmp_path, "bad", before="print('password: hunter2-canary', file=sys.stderr, flush=True)")
    async with beside_a_good_one(tmp_path) as (host, process, _):
        async with process.call(30) as launch:
            launch.secrets.add(canary)
            process._heard(Line("bad", "stderr", f"it is {canary.decode()}"))
        process.kill()
        await until(lambda: process.crashes, 30)
        told = str(await shown(host, process))
        assert "password: …" in told
        assert "hunter2-canary" not in told
    said = str(logged.entries)
    assert canary.decode() not in said
    assert "hunter2-canary" not in said
    assert "it is …" in said


async def test_the_last_ten_deaths_are_told_the_newest_first(tmp_path: Path) -> None:
    make_plugin(tmp_path, "bad")
    async with beside_a_good_one(tmp_path) as (host, process, _):
        for number in range(12):
            await until(partial(serves_again, process, number), 30)
            process.proved()
            process.end(f"it is number {number}")
            await until(partial(_died, process, number), 30)
        told = await shown(host, process)
        assert [crash.reason for crash in told.crashes] == [
            f"bad was ended: it is number {number}" for number in range(11, 1, -1)
        ]


def _died(process: PluginProcess, number: int) -> bool:
    return bool(process.crashes) and f"number {number}" in process.crashes[0].report.sentence


async def test_a_gentle_restart_loses_no_call(tmp_path: Path) -> None:
    make_plugin(tmp_path, "bad")
    bad = served("bad")
    async with beside_a_good_one(tmp_path) as (_, process, broker):
        await until(lambda: process.state is State.READY, 30)
        slow = [asyncio.create_task(broker.transform([group(bad, "wait")])) for _ in range(4)]
        await until(lambda: process.calls_in_flight, 30)
        restarting = asyncio.create_task(process.restart())
        await until(lambda: process.draining, 30)
        late = asyncio.create_task(broker.transform([group(bad, "late")]))
        await restarting
        for task in slow:
            assert titles((await task)[0]) == ["wait"]
        assert titles((await late)[0]) == ["late"]
        assert process.starts == 2
        assert not process.crashes


async def test_processes_apart_and_what_they_hold_end_when_nobody_needs_them(tmp_path: Path) -> None:
    make_plugin(tmp_path, "bad")
    ones = [served("bad", 1), served("bad", 2, cell="a1"), served("bad", 3, cell="b2")]
    async with beside_a_good_one(tmp_path) as (host, process, _):
        broker = Broker(host, FixedConnections(*ones))
        results = await broker.transform([group(one, "x") for one in ones])
        pids = {
            draft.attributes
            for result in results
            for outcome in result.outcomes
            for draft in outcome.events.drafts
        }
        assert len(pids) == 3, "each tells its own pid"
        apart = [one for one in host.everything() if one.cell]
        assert {one.resource for one in apart} == {
            f"plugins/bad/processes/1-0-0-{cell}" for cell in ("a1", "b2")
        }
        apart[0].kill()
        await until(lambda: apart[0].crashes, 30)
        assert process.state is State.READY, "the others have nothing to do with it"


TROUBLE = CODE.replace(
    'case "wait"',
    """case "die": os.abort()
            case "burn":
                until = time.monotonic() + 0.2
                while time.monotonic() < until: pass
            case "flood":
                print("x" * 1_000_000)
            case "wait\"""",
)


@pytest.mark.proof
@pytest.mark.timeout(600)
async def test_the_others_hardly_notice(
    tmp_path: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """The second plugin's p99 beside one that dies, burns and floods, against an undisturbed run; paired."""
    repetitions, calls = prove(1, 5), prove(200, 2000)
    make_plugin(tmp_path, "good")
    make_plugin(tmp_path, "bad", code=TROUBLE)
    good, bad = served("good"), served("bad")
    quiet, disturbed = [], []
    crashes = 0
    async with hosting(tmp_path, policy=RestartPolicy(base=0.05, cap=0.1, crash_limit=None)) as host:
        broker = Broker(host, FixedConnections(good, bad))

        async def trouble() -> None:
            for number in count():
                word = ("die", "burn", "flood")[number % 3]
                await broker.transform(
                    [group(bad, f'{{"say": "{word}", "n": {number}}}'.encode())], within=3.0
                )

        async def p99() -> float:
            taken = []
            for _ in range(calls):
                began = time.perf_counter()
                (result,) = await broker.transform([group(good, "hello")])
                taken.append(time.perf_counter() - began)
                assert titles(result) == ["hello"]
            return sorted(taken)[int(len(taken) * 0.99)] * 1000

        await p99()
        for _ in range(repetitions):
            quiet.append(await p99())
            task = asyncio.create_task(trouble())
            disturbed.append(await p99())
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError)
        crashes = host.processes["bad"].starts - 1
        assert not host.processes["good"].crashes
    ratio = median(there / alone for there, alone in zip(disturbed, quiet, strict=True))
    found(
        f"{repetitions} pairs of {calls} calls: p99 {median(quiet):.1f} ms alone, {median(disturbed):.1f} ms beside a"
        f" plugin that died {crashes} times, burned and flooded (x{ratio:.2f}, medians)"
    )
