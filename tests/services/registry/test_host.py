"""Plugin processes: proven at their start, alone in their trouble, and gone with their host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from foundation.clock import SystemClock
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import State
from foundation.process.testing import alive, gone, until
from services.registry.catalogue.describing import difference
from services.registry.host.process import PluginDown, PluginProcess
from services.registry.host.socket_room import PREFIX, socket_room
from services.registry.host.watchdog import Patience
from tests.services.registry.plugins import hosting, make_plugin, served
from tieline.plugin.v1.manifest_pb2 import Manifest

NO_PROOF = 'os.environ["TIELINE_PLUGIN_NONCE"] = "AAAA"'
OTHER_MANIFEST = """
    from pathlib import Path
    text = Path("plugin.toml").read_text().replace('title = "', 'title = "another ')
    Path("other.toml").write_text(text)
    serve(Plugin(), Path("other.toml"))
"""


def left_alone(process: PluginProcess) -> bool:
    return process.state is State.FAILED


async def test_a_plugin_that_is_not_what_it_says_is_refused_and_blocks_nobody(tmp_path: Path) -> None:
    make_plugin(tmp_path, "good")
    make_plugin(tmp_path, "liar", before=OTHER_MANIFEST.strip())
    make_plugin(tmp_path, "stranger", before=NO_PROOF)
    make_plugin(tmp_path, "crashing", before="sys.exit('no such luck')")
    (make_plugin(tmp_path, "absent") / "plugin.toml").write_text(
        (tmp_path / "good" / "plugin.toml").read_text().replace('"good', '"absent').replace('"python"', '"no-such-program"')
    )  # fmt: skip
    async with hosting(tmp_path) as host:
        good = host.processes["good"]
        async with good.call(60.0):
            assert good.state is State.READY
        for name, why in {
            "liar": "describes itself otherwise than its manifest: title",
            "stranger": "is not the process that was started",
            "crashing": "no such luck",
            "absent": "cannot execute no-such-program",
        }.items():
            process = host.processes[name]
            await until(partial(left_alone, process), 30.0)
            assert why in process.trouble
            assert process.pid is None
            with pytest.raises(PluginDown, match=name):
                async with process.call(1.0):
                    pass


async def test_a_plugin_sees_only_what_it_may_and_listens_where_nobody_else_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_OURS", "canary")
    monkeypatch.setenv("SHARED_HINT", "hello")
    make_plugin(tmp_path, "one")
    file = tmp_path / "one" / "plugin.toml"
    file.write_text(file.read_text().replace("install =", 'pass_env = ["SHARED_HINT"]\ninstall ='))
    async with hosting(tmp_path) as host, host.processes["one"].call(60.0) as launch:
        pid = host.processes["one"].pid
        assert pid is not None
        environment = psutil.Process(pid).environ()
        assert "A_SECRET_OF_OURS" not in environment
        assert environment["SHARED_HINT"] == "hello"
        assert launch.nonce.hex() not in " ".join(psutil.Process(pid).cmdline())
        assert launch.socket.parent.stat().st_mode & 0o777 == 0o700
        assert len(str(launch.socket)) < 100
        assert {c.status for c in psutil.Process(pid).net_connections("tcp")} == set(), "no port is open"
    assert not alive(pid)
    assert not launch.socket.parent.exists()


async def test_every_launch_has_a_socket_of_its_own(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    async with hosting(tmp_path) as host:
        process = host.processes["one"]
        async with process.call(60.0) as first:
            pass
        process.kill()
        await until(lambda: process.state is not State.READY)
        async with process.call(60.0) as second:
            pass
        assert first.socket != second.socket
        assert first.nonce != second.nonce
        assert not second.prepared


async def test_every_launch_has_a_scratch_of_its_own_and_takes_it_along(tmp_path: Path) -> None:
    note = 'open(os.environ["TIELINE_PLUGIN_SCRATCH"] + "/mine", "x").close()'
    folder = make_plugin(tmp_path, "one", before=note, rest="[scratch]\nquota_bytes = 1000000")
    async with hosting(tmp_path) as host:
        old = host.processes["one"]
        async with old.call(60.0) as launch:
            scratches = launch.socket.parents[1]
            (first,) = scratches.glob("scratch-*")
            (folder / "more.py").write_text("x = 1")
            await until(lambda: old.outdated, 30)
            new = await host.restart(old)
            async with new.call(60.0):
                assert (first / "mine").exists(), "the old one still works in its own"
        await until(lambda: list(host.everything()) == [new], 60)
        await until(lambda: not first.exists(), 30)
        os.kill(new.pid or 0, signal.SIGKILL)
        await until(lambda: new.starts == 2 and new.state is State.READY, 60)
        await until(lambda: len(list(scratches.glob("scratch-*/mine"))) == 1, 30)


async def test_who_keeps_more_than_its_quota_in_its_scratch_is_ended(tmp_path: Path) -> None:
    hoard = 'open(os.environ["TIELINE_PLUGIN_SCRATCH"] + "/hoard", "wb").write(b"x" * 3 * 1024 * 1024)'
    make_plugin(tmp_path, "one", before=hoard, rest="[scratch]\nquota_bytes = 1048576")
    async with hosting(tmp_path, patience=Patience(look_seconds=0.1)) as host:
        process = host.processes["one"]
        await until(lambda: process.crashes, 60)
        assert "it kept more than 1 MiB in its scratch folder, which is its quota" in process.trouble


async def test_a_process_apart_ends_after_a_while_without_calls(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    async with hosting(tmp_path) as host:
        shared, apart = host.processes["one"], host.route(served("one", cell="acme"))
        assert apart is not None
        async with apart.call(60.0):
            apart.idle_since -= 3600.0
            make_plugin(tmp_path, "two")
            await until(lambda: "two" in host.processes, 30)
            assert apart in host.everything(), "a call is under way"
        for process in (shared, apart):
            process.idle_since -= 3600.0
        make_plugin(tmp_path, "three")
        await until(lambda: apart not in host.everything(), 60)
        assert host.processes["one"] is shared


async def test_it_is_told_when_a_dead_one_is_started_again(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one", before="sys.exit(1)")
    async with hosting(tmp_path, policy=RestartPolicy(base=600.0, cap=600.0)) as host:
        process = host.processes["one"]
        before = SystemClock().now()
        await until(lambda: process.state is State.WAITING and len(process.crashes) == 2, 60)
        assert process.next_start is not None
        assert before < process.next_start <= SystemClock().now() + timedelta(seconds=600)


async def test_an_inactive_plugin_is_not_started(tmp_path: Path) -> None:
    file = make_plugin(tmp_path, "one") / "plugin.toml"
    file.write_text(file.read_text().replace('"active"', '"inactive"'))
    async with hosting(tmp_path) as host:
        assert not host.processes
        assert host.catalogue.content.names() == ["one"]


HOST = """
import asyncio, sys
from pathlib import Path
from foundation.process.supervised import State
from foundation.telemetry import configure_logs
from tests.services.registry.plugins import hosting

async def main(where):
    async with hosting(where / "plugins", below=where) as host:
        for process in host.processes.values():
            async with process.call(60.0):
                print(process.pid, flush=True)
        await asyncio.Event().wait()

configure_logs("host", "error", "text")
asyncio.run(main(Path(sys.argv[1])))
"""


@contextmanager
def a_host(where: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A host in a process of its own, and its plugins' pids; killed at the end, if not before."""
    command = [sys.executable, "-c", HOST, str(where)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(process.stdout.readline()) for _ in range(2)]
        finally:
            process.kill()


async def test_no_plugin_outlives_a_host_that_was_killed_and_its_sockets_are_swept(short_dir: Path) -> None:
    make_plugin(short_dir / "plugins", "one")
    make_plugin(short_dir / "plugins", "two")
    with a_host(short_dir) as (first, pids):
        first.kill()
        await gone(pids)
    (left,) = short_dir.glob(f"{PREFIX}*")
    with a_host(short_dir) as (_, pids):
        assert not left.exists(), "the next host tidies up"
        with socket_room(short_dir):
            assert all(alive(pid) for pid in pids), "and leaves alone what a living host uses"
            assert len(list(short_dir.glob(f"{PREFIX}*/lock"))) == 2
    await gone(pids)


async def test_a_plugin_ends_by_itself_when_its_stdin_does(tmp_path: Path, short_dir: Path) -> None:
    """Where no death signal reaches it: another kernel, a shell in between."""
    folder = make_plugin(tmp_path, "one")
    environment = {"TIELINE_PLUGIN_ADDRESS": f"unix://{short_dir}/s", "PATH": os.environ["PATH"]}
    for end in ("stdin", "SIGTERM"):
        (short_dir / "s").unlink(
            missing_ok=True
        )  # what the first one may have left does not tell of the second
        process = start_alone(folder, environment)
        assert process.stdin is not None
        await until((short_dir / "s").exists)
        if end == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        assert process.wait(30) == 0
        process.stdin.close()


def start_alone(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "plugin"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.PIPE)


def test_json_is_compared_by_what_it_means() -> None:
    one = Manifest(name="a", settings_schema=b'{"b":1,"a":2}')
    assert difference(one, Manifest(name="a", settings_schema=b'{ "a": 2, "b": 1 }')) == ""
    assert difference(one, Manifest(name="b", settings_schema=b'{"a":2}')) == "name, settings_schema"
