"""One to three failed tests of a whole run are run once more, alone: a busy machine shall not turn a run red.

A test that passes only then is named as UNSTEADY, with its first failure's text: a bug to mend, not a state.
Tests that somebody named, or chose with -k, get no second look: they are being looked at already.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

AT_MOST = 3
WITHIN = 900.0


class SecondLook:
    """In the process that runs the tests or has them run; never in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._failed: dict[str, None] = {}
        self._uncollected = False
        self._unsteady: tuple[str, ...] = ()
        self._said = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._uncollected |= report.failed

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Before whoever judges the run by its exit status: a run that turned green is judged as a green one."""
        if not self._wanted(session):
            return
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"second look: {len(self._failed)} failed, run once more, alone ...")
        passed, self._said = self._alone()
        if passed:
            self._unsteady = tuple(self._failed)
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._unsteady:
            names = " ".join(self._unsteady)
            terminalreporter.write_sep("!", "second look", yellow=True, bold=True)
            terminalreporter.write_line(
                f"UNSTEADY: passed only when run alone: {names}", yellow=True, bold=True
            )
        elif self._said:
            terminalreporter.write_sep("=", "second look: failed when run alone too", red=True)
            terminalreporter.write_line(self._said)

    def _wanted(self, session: pytest.Session) -> bool:
        option = self._config.option
        chosen = self._config.args_source is pytest.Config.ArgsSource.ARGS or option.keyword or option.usepdb
        stopped = session.shouldfail or session.shouldstop or self._uncollected
        failed = session.exitstatus == pytest.ExitCode.TESTS_FAILED and 0 < len(self._failed) <= AT_MOST
        return failed and not chosen and not stopped

    def _alone(self) -> tuple[bool, str]:
        """Whether every one of them passed, and what pytest said. The last of an option's values counts."""
        with tempfile.TemporaryDirectory(prefix="tl-") as directory:
            report = Path(directory) / "report.xml"
            options = (*self._config.invocation_params.args, "-n", "0", f"--junit-xml={report}")
            command = [sys.executable, "-m", "pytest", *map(str, options), "--", *self._failed]
            try:
                ended = subprocess.run(
                    command,
                    cwd=self._config.rootpath,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=WITHIN,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False, f"it did not end within {WITHIN:g} s"
            return ended.returncode == 0 and self._all_passed(report), ended.stdout + ended.stderr

    def _all_passed(self, report: Path) -> bool:
        """A test that was skipped did not pass, and none may be missing."""
        suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - our own pytest wrote it
        counted = [
            {key: int(suite.attrib[key]) for key in ("tests", "errors", "failures", "skipped")}
            for suite in suites
        ]
        return counted == [{"tests": len(self._failed), "errors": 0, "failures": 0, "skipped": 0}]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SecondLook(config), "second look")
