"""`tieline up` from the first start to the last stop, with whatever may end it in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import asyncpg
import grpc.aio
import httpx
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import cli
from cli.ask import ask
from foundation.engines.nats import Nats
from foundation.engines.postgres import Postgres
from foundation.engines.testing import CARELESS
from foundation.process.restart import RestartPolicy
from foundation.process.supervised import State
from foundation.process.testing import until as until_ready
from foundation.rpc import check_health, connect
from foundation.settings import Address
from tests.conftest import ROOT
from tests.scenarios.suite import TIELINE, Standing, Suite, alive, begin, tieline, until, up

SERVICES = ("credentials", "registry", "mapper")


async def test_everything_serves_and_can_be_asked(short_dir: Path) -> None:
    async with up(short_dir / "data") as suite:
        endpoints = suite.endpoints
        assert set(endpoints) == {"gateway", *SERVICES, "admin_token_file"}
        for name in SERVICES:
            async with connect(endpoints[name]) as channel:
                await check_health(channel, name)
                assert "grpc.health.v1.Health" in await _reflected(channel)
        async with httpx.AsyncClient() as client:
            for process in suite.processes.values():
                base = f"http://{process['http']}"
                assert (await client.get(f"{base}/healthz")).json() == {"status": "alive"}
                ready = (await client.get(f"{base}/readyz")).json()
                assert ready["status"] == "ready"
                assert set(ready["dependencies"].values()) == {"ok"}
                assert "tieline_ready{" in (await client.get(f"{base}/metrics")).text
        assert f"http://{suite.processes['gateway']['http']}" == endpoints["gateway"]
        token = Path(endpoints["admin_token_file"])
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert len(token.read_text().strip()) > 32

        code, out, _ = await tieline("--data", str(suite.data), "status")
        assert (code, out.count(" ready")) == (0, 4)
        code, out, _ = await tieline("doctor", "--json", "--data", str(suite.data))
        assert code == 0, out
        assert f"process {suite.process.pid}" in out
        _nothing_is_open_to_others(suite.data)
        assert await suite.end(signal.SIGINT) < 15
        assert suite.process.returncode == 0
        assert not (suite.data / "run/endpoints.json").exists()
    code, _, err = await tieline("status", "--data", str(short_dir / "data"))
    assert (code, err.count("\n")) == (1, 1)
    assert "Nothing runs on the data directory" in err


async def _reflected(channel: grpc.aio.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(
        cast("Any", channel)
    )  # the stubs know only the other kind
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in call:
        return {service.name for service in answer.list_services_response.service}
    return set()


def _nothing_is_open_to_others(data: Path) -> None:
    for secret in ("keys", "run", "logs", "postgres", "nats"):
        assert stat.S_IMODE((data / secret).stat().st_mode) == 0o700


@pytest.mark.proof
async def test_kill_9_leaves_nothing_behind_and_loses_nothing(
    short_dir: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    """Committed rows survive; no process of the killed run is left; the next one starts on the same data."""
    rounds = prove(2, 10)
    slowest = 0.0
    for number in range(1, rounds + 1):
        async with up(short_dir / "data") as suite:
            database = await suite.database()
            await database.execute("create table if not exists mark (n int)")
            await database.execute("insert into mark values ($1)", number)
            assert await database.fetchval("select count(*) from mark") == number
            slowest = max(slowest, await suite.end(signal.SIGKILL))
            database.terminate()
    found(
        f"{rounds} kills of `tieline up`: nothing left after {slowest:.1f} s at most, {rounds} of {rounds} rows kept"
    )


@pytest.mark.proof
async def test_a_stop_takes_less_than_15_seconds(
    short_dir: Path, prove: Callable[[int, int], int], found: Callable[[str], None]
) -> None:
    rounds = prove(1, 10)
    times = []
    for _ in range(rounds):
        async with up(short_dir / "data") as suite:
            times.append(await suite.end(signal.SIGTERM))
            assert suite.process.returncode == 0
    assert max(times) < 15
    found(f"{rounds} stops by SIGTERM: {max(times):.1f} s at most")


@pytest.mark.parametrize("victim", ["services.mapper", "gateway", "postgres", "nats-server"])
async def test_what_is_killed_comes_back_where_it_was(mortal: Standing, victim: str) -> None:
    before, said_before = mortal.endpoints, mortal.text
    mortal.child(victim).kill()
    await until(lambda: "starting it again" in mortal.text.removeprefix(said_before), 30)
    await _all_ready(mortal)
    assert mortal.endpoints == before
    said = mortal.text.removeprefix(said_before).splitlines()
    [again] = [line for line in said if "starting it again" in line]
    assert again.endswith(" was killed by SIGKILL; starting it again")


async def _all_ready(suite: Standing) -> None:
    addresses = [Address.parse(process["http"]) for process in suite.processes.values()]

    async def ready() -> bool:
        """The verb is asked last, because it costs the most."""
        if not all([(await ask(address.host, address.port)).ready for address in addresses]):
            return False
        code, out, _ = await tieline("status", "--json", "--data", str(suite.data))
        assert code or json.loads(out)["ready"] is True
        return code == 0

    await until_ready(ready, 60)


async def test_a_service_that_keeps_dying_is_never_given_up(short_dir: Path) -> None:
    given_up_after = RestartPolicy().crash_limit
    assert given_up_after is not None
    async with up(short_dir / "data") as suite:
        for death in range(1, given_up_after + 1):
            suite.child("services.registry").kill()
            await until(lambda death=death: suite.text.count("starting it again") == death, 60)  # type: ignore[misc]
            await _all_ready(suite)


async def test_an_ordinary_user_runs_it_too(short_dir: Path) -> None:
    """The engines treat root and others differently; where the tests run as root, run as somebody else."""
    nobody: dict[str, Any] = {}
    program = TIELINE
    if os.geteuid() == 0:
        interpreter = _everybodys_python()
        if interpreter is None:
            pytest.skip("no interpreter of this version that an ordinary user may run")
        program = (interpreter, "-m", "cli")
        packages = os.pathsep.join(
            [str(ROOT), str(ROOT / "sdk/python/src"), *(path for path in sys.path if "site-packages" in path)]
        )
        nobody = {
            "user": 65534,
            "group": 65534,
            "extra_groups": [],
            "env": os.environ | {"PYTHONPATH": packages},
        }
        os.chown(short_dir, 65534, 65534)
    async with up(short_dir / "data", program=program, **nobody) as suite:
        assert (suite.data / "postgres/cluster").stat().st_uid == (65534 if nobody else os.geteuid())
        assert await suite.end(signal.SIGKILL) < 15
    async with up(short_dir / "data", program=program, **nobody) as suite:
        assert await suite.end() < 15
    short_dir.chmod(0o500)
    refused = await begin(short_dir / "other", program=program, **nobody)
    assert await refused.process.wait() == 2
    await refused.end()
    assert "Permission denied" in refused.text
    assert refused.text.count("\n") == 1


def _everybodys_python() -> str | None:
    """An interpreter of our version, and our packages, reachable without being root."""
    for place in (ROOT, Path(cli.__file__), Path(grpc.aio.__file__)):
        if not all(parent.stat().st_mode & 0o005 == 0o005 for parent in place.resolve().parents):
            return None
    candidates = [f"python3.{sys.version_info.minor}", "python3"]
    for directory in ("/usr/bin", "/usr/local/bin"):
        for path in (Path(directory) / name for name in candidates):
            asked: list[str] = [
                str(path),
                "-c",
                "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, sys.argv[1:])))",
            ]
            version = [str(number) for number in sys.version_info[:2]]
            if path.exists() and not subprocess.run(asked + version, check=False).returncode:
                return str(path)
    return None


async def test_a_closed_terminal_ends_neither_supervision_nor_an_orderly_stop(short_dir: Path) -> None:
    heard, told = os.pipe()
    suite = await begin(
        short_dir / "data", program=("bash", "-c", f'exec "$@" 2>&{told}', "-", *TIELINE), pass_fds=(told,)
    )
    os.close(told)
    try:
        await suite.ready()
    finally:
        os.close(heard)
    for victim in ("services.registry", "services.registry"):
        before = suite.child(victim)
        before.kill()
        await until(lambda before=before: before.pid not in _pids(suite), 30)  # type: ignore[misc]
        await _all_ready(suite)
    assert await suite.end() < 15
    assert suite.process.returncode == 0


async def test_a_service_comes_back_though_its_settings_were_tidied_away(short_dir: Path) -> None:
    async with up(short_dir / "data") as suite:
        address = Address.parse(suite.processes["mapper"]["http"])
        shutil.rmtree(suite.data / "run")
        suite.child("services.mapper").kill()
        await until(lambda: "starting it again" in suite.text, 30)

        async def ready() -> bool:
            return (await ask(address.host, address.port)).ready

        await until_ready(ready, 30)
        assert stat.S_IMODE((suite.data / "run").stat().st_mode) == 0o700


def _pids(suite: Suite) -> set[int]:
    return {process.pid for process in suite.descendants() if alive(process)}


async def test_ctrl_c_while_it_starts_ends_it_as_well(short_dir: Path) -> None:
    suite = await begin(short_dir / "data")
    await until((short_dir / "data/postgres/cluster").exists, 30)
    assert await suite.end(signal.SIGINT) < 15
    assert suite.process.returncode == 0, suite.text
    assert "Traceback" not in suite.text
    async with up(short_dir / "data"):
        pass


async def test_two_installations_side_by_side(shared: Standing, short_dir: Path) -> None:
    async with up(short_dir / "one") as one:
        assert set(one.endpoints.values()).isdisjoint(shared.endpoints.values())
        for suite in (one, shared):
            assert (await tieline("status", "--data", str(suite.data)))[0] == 0
        await one.end(signal.SIGKILL)
        assert (await tieline("status", "--data", str(shared.data)))[0] == 0


async def test_external_engines_are_used_and_left_alone(short_dir: Path) -> None:
    async with Postgres(short_dir / "theirs", settings=CARELESS) as postgres, Nats(short_dir / "bus") as nats:
        theirs = {"TIELINE_DATABASE_URL": postgres.url, "TIELINE_NATS_URL": nats.url}
        async with up(short_dir / "data", env=os.environ | theirs) as suite:
            assert len(suite.descendants()) == 5  # four services and the plugin
            assert (await tieline("status", "--data", str(suite.data)))[0] == 0
            shown = [process.cmdline() + list(process.environ().values()) for process in suite.descendants()]
            assert not {postgres.url, nats.url} & {text for texts in shown for text in texts}
            assert await suite.end() < 15
        assert postgres.state is State.READY
        assert nats.state is State.READY
        assert not {"postgres", "nats"} & {path.name for path in suite.data.iterdir()}


async def test_two_installations_share_one_postgresql(short_dir: Path) -> None:
    async with Postgres(short_dir / "theirs", settings=CARELESS) as postgres:
        theirs = await asyncpg.connect(postgres.url)
        await theirs.execute("create database second")
        await theirs.close()
        first = os.environ | {"TIELINE_DATABASE_URL": postgres.url}
        second = {"TIELINE_DATABASE_URL": postgres.url_of("second")}
        two = ("up", "--data", str(short_dir / "two"), "--http", "127.0.0.1:0")
        async with up(short_dir / "one", env=first) as one:
            code, _, err = await tieline(*two, env=second)
            assert code == 2, err
            assert "belongs to another installation" in err
            second["TIELINE_UP_DATABASE_ROLE_PREFIX"] = "second"
            async with up(short_dir / "two", env=os.environ | second) as other:
                for suite in (one, other):
                    assert (await tieline("status", "--data", str(suite.data)))[0] == 0


@pytest.mark.parametrize("name", ["a path with spaces & 'quotes'", "x" * 100])
async def test_any_path_will_do(short_dir: Path, name: str) -> None:
    async with up(short_dir / name / "data") as suite:
        assert (await tieline("status", "--data", str(suite.data)))[0] == 0
