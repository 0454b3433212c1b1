"""What every test may use, and two house rules: stubs are fresh, and a skip has to be accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.process.cgroups import Cgroups, find
from foundation.process.confined import unconfinable

ROOT = Path(__file__).resolve().parent.parent

pytest_plugins = ["tests.properties", "tests.second_look"]

ACCOUNTED_SKIPS: dict[str, str] = {
    # words of a skip's reason -> why a machine may truly be unable to run the test
    "only root may mount": "a full disk is shown on a small file system, which an ordinary user cannot mount",
    "the README's steps need": "curl and openssl play GitHub's part in it",
    "GitHub's published examples cannot be fetched": "there is no npm, or no registry to ask",
    "there is no npm on this machine": "a plugin of Node is installed with npm, where that is",
    "there is no strace": "system calls are looked at with strace where it is installed",
    "this machine confines no process": "containers often forbid namespaces",
    "this machine lets nobody make control groups": "few containers may, and ordinary users nowhere",
    "this machine lets nobody trace": "containers often forbid ptrace",
    "no interpreter of this version that an ordinary user may run": "the clone or Python is private to root",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--prove", action="store_true", help="run proofs at their full length")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # Somebody may call pytest without make: a changed proto has its stubs made anew here too.
        subprocess.run([sys.executable, ROOT / "sdk/python/hatch_build.py"], check=True)


@pytest.fixture(scope="session")
def prove(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`prove(short, long)`: the length of a proof in `make test`, and in `make prove`."""
    full: bool = request.config.getoption("--prove")
    return lambda short, long: long if full else short


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Let a proof say what it did and what it found; the summary shows it."""
    return lambda text: request.node.user_properties.append(("found", text))


FORBIDDEN = (
    "namespaces of its own are not to be had",
    "it takes Linux 5.12",
    "Linux 6.12 rules that out",
    "no other user can be put on the map",
)
"""Why a machine may truly confine nothing. Any other reason is a defect of ours, and no test is skipped for it."""


@pytest.fixture
async def confinable() -> None:
    why = await unconfinable()
    if any(words in why for words in FORBIDDEN):
        pytest.skip(f"this machine confines no process: {why}")
    assert not why


@pytest.fixture
def cgroups() -> Cgroups:
    place = find()
    if place is None:
        pytest.skip("this machine lets nobody make control groups")
    return place


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp") as path:
        yield Path(path)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _reports.append(report)


_reports: list[pytest.TestReport] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for report in _reports:
        for name, text in report.user_properties if report.when == "call" else ():
            if name == "found":
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {text}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With CI=true a skip whose reason is not listed above fails the run, one that a second look saved too."""
    if os.environ.get("CI") != "true" or hasattr(session.config, "workerinput") or session.exitstatus:
        return
    unlisted = [
        report.nodeid
        for report in _reports
        if report.skipped and not any(words in str(report.longrepr) for words in ACCOUNTED_SKIPS)
    ]
    if unlisted:
        sys.stderr.write(f"\nskipped without being accounted for: {', '.join(unlisted)}\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
