"""The README's commands, executed in a fresh clone with an empty `.venv`, as a newcomer would."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.scenarios.suite import alive, until

BLOCKS = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)

SAYS = (
    "ready",
    "github.deployment.failed",
    "connections/github-main",
    '{"delivery_id":',
    "ada pushed 1 commit",
)
"""What a newcomer reads after each block between `make up` and `make test`."""


def test_the_readme_begins_and_ends_as_the_test_expects() -> None:
    """When this changes, the test below has to follow."""
    assert BLOCKS[0] == "make up"
    assert BLOCKS[-1] == "make test"
    assert len(BLOCKS) == len(SAYS) + 2


@pytest.fixture
def clone(short_dir: Path) -> Path:
    """What git would give: every file that is tracked or about to be, and nothing that a build left."""
    for tool in ("git", "curl", "openssl"):
        if shutil.which(tool) is None:
            pytest.skip(f"the README's steps need {tool}")
    target = short_dir / "tieline"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.mark.timeout(600)
async def test_a_newcomer_gets_what_the_readme_promises(clone: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TIELINE_", "PYTHON", "VIRTUAL_ENV", "MAKE", "MFLAGS", "ARGS", "PYTEST"))
    }
    # The port in the README may be taken on this machine; everything else is as it is written.
    environment["TIELINE_UP_HTTP"] = "127.0.0.1:0"
    log = clone.parent / "up.log"
    with log.open("wb") as output:
        make = await asyncio.create_subprocess_shell(
            BLOCKS[0],
            cwd=clone,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        await until(lambda: "\nready " in log.read_text() or make.returncode is not None, 240)
        assert make.returncode is None, log.read_text()
        address = re.search(r"^ready http://(\S+)", log.read_text(), re.MULTILINE)
        assert address is not None
        for block, says in zip(BLOCKS[1:-1], SAYS, strict=True):
            script = block.replace("127.0.0.1:8080", address[1])
            await _run(script, says, clone, environment)
    finally:
        started = psutil.Process(make.pid).children(recursive=True) if make.returncode is None else []
        os.killpg(make.pid, signal.SIGINT)
        await make.wait()
        await until(lambda: not [process for process in started if alive(process)], 30)
    assert "stopped" in log.read_text()
    stubs = list((clone / "sdk/python/src/tieline").glob("*/v1/*_pb2.py"))
    assert stubs, "the stubs were not made"


async def _run(script: str, says: str, clone: Path, environment: dict[str, str]) -> None:
    """A block as it stands, in a shell that stops at the first failure; what is read may take a moment to come."""
    async with asyncio.timeout(30):
        while True:
            shell = await asyncio.create_subprocess_exec(
                "bash",
                "-euo",
                "pipefail",
                "-c",
                script,
                cwd=clone,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            said, _ = await shell.communicate()
            assert shell.returncode == 0, f"{script}\n{said.decode()}"
            if says.encode() in said:
                return
            assert "event list" in script, f"{script}\n{said.decode()}"
            await asyncio.sleep(0.2)
