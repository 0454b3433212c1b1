"""`tieline action` and `tieline operation` against a registry."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foundation.engines.testing import Served
from tests.services.registry.acting import acting_registry, effects
from tests.services.registry.conftest import Running


@pytest.fixture
async def acting(engines: Served, tmp_path: Path) -> AsyncIterator[Running]:
    async with acting_registry(engines, tmp_path) as running:
        (tmp_path / "tl").write_text("tl_operator")
        endpoints = {
            "gateway": "http://127.0.0.1:9",
            "credentials": str(running.settings.credentials),
            "registry": str(running.settings.listen),
            "mapper": str(running.settings.listen),
            "admin_token_file": str(tmp_path / "tl"),
        }
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "endpoints.json").write_text(json.dumps(endpoints))
        yield running


async def said(data: Path, *words: str, given: str = "") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli", *words, "--data", str(data), "--tenant", "acme"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate(given.encode())
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.usefixtures("acting")
async def test_an_action_is_found_run_and_shown(tmp_path: Path) -> None:
    for way in (("--plugin", "acting"), ("--connection", "main")):
        code, out, _ = await said(tmp_path, "action", "list", *way)
        assert (code, len(out.splitlines())) == (0, 3)
        assert "post                         none       [how], [n]" in out
    code, out, _ = await said(tmp_path, "action", "list", "--plugin", "acting", "--json")
    assert [one["name"] for one in json.loads(out)["items"]] == ["post", "put", "pay"]
    run = ("action", "run", "main", "put", "--key", "one", "--arguments", "-")
    code, out, err = await said(tmp_path, *run, "--json", given='{"n": 1}')
    assert (code, err) == (0, "")
    done = json.loads(out)
    assert (done["state"], done["output"], done["arguments"]) == ("STATE_SUCCEEDED", {"id": "one"}, {"n": 1})
    code, out, _ = await said(tmp_path, *run, given='{"n": 1}')
    assert (code, effects(tmp_path, "one")) == (0, 1)
    assert "succeeded" in out
    assert 'output {"id":"one"}' in out
    code, _, err = await said(tmp_path, *run, given='{"n": 2}')
    assert code == 1
    assert "another key" in err
    code, out, _ = await said(tmp_path, "operation", "list", "--json", "--state", "succeeded")
    (listed,) = json.loads(out)["items"]
    assert listed["name"] == done["name"]
    id_ = done["name"].rpartition("/")[2]
    code, out, _ = await said(tmp_path, "operation", "watch", id_)
    assert (code, out.split()[3]) == (0, "succeeded")


@pytest.mark.usefixtures("acting")
async def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path) -> None:
    code, out, err = await said(tmp_path, "action", "run", "main", "put", "--arguments", "-", given="[]")
    assert (code, out) == (1, "")
    assert "JSON object" in err
    code, _, err = await said(tmp_path, "action", "run", "main", "fly")
    assert code == 1
    assert "post, put, pay" in err
    code, out, _ = await said(
        tmp_path, "action", "run", "main", "put", "--arguments", "-", given='{"how":"refused"}'
    )
    assert code == 1
    assert "MOVED: it is not as you thought" in out
    id_ = out.split()[0]
    assert f"tieline operation retry {id_}" in out
    code, _, err = await said(tmp_path, "operation", "resolve", id_, "--applied")
    assert code == 1
    assert "not ambiguous" in err
    code, _, err = await said(tmp_path, "operation", "resolve", id_)
    assert code == 2


@pytest.mark.usefixtures("acting")
async def test_nobody_need_wait_and_a_person_may_take_it_back(tmp_path: Path) -> None:
    (tmp_path / "offline").touch()
    code, out, _ = await said(tmp_path, "action", "run", "main", "post", "--no-wait", "--start-within", "2d")
    assert code == 0
    id_ = out.split()[0]
    code, out, _ = await said(tmp_path, "operation", "cancel", id_)
    assert code == 0
    code, out, _ = await said(tmp_path, "operation", "watch", id_, "--json")
    assert code == 1
    assert json.loads(out.splitlines()[-1])["state"] == "STATE_CANCELLED"
    code, out, _ = await said(tmp_path, "operation", "show", id_)
    assert "cancelled" in out
