"""A project of a few tests, run by a pytest of its own that has this repository's rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RULES = """
from tests.conftest import pytest_addoption, pytest_runtest_logreport, pytest_sessionfinish
pytest_plugins = ["tests.second_look"]
"""
STEADY = "def test_steady(): pass"
BROKEN = "def test_{}(): assert False, 'it never holds'"
UNSTEADY = """
def test_{0}():
    from pathlib import Path
    before = Path("ran-{0}")
    if not before.exists():
        before.touch()
        raise AssertionError("the other one was first")
"""
SKIPPED = "import pytest\n\n@pytest.mark.skip(reason='nobody listed this')\ndef test_skipped(): pass"
SKIPPED_THEN = """
def test_given_up():
    import pytest
    from pathlib import Path
    before = Path("ran-given-up")
    if before.exists():
        pytest.skip("it was too hard")
    before.touch()
    assert False
"""
IN_SETUP = """
import pytest
from pathlib import Path

@pytest.fixture
def ground():
    before = Path("ran-ground")
    if not before.exists():
        before.touch()
        raise OSError("not yet there")

def test_on_ground(ground): pass
"""
CRASHED = """
def test_crashed():
    import os
    from pathlib import Path
    before = Path("ran-crashed")
    if not before.exists():
        before.touch()
        os._exit(1)
"""

both = pytest.mark.parametrize("workers", ["0", "2"])


class Project:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(
        self, *tests: str, workers: str, ci: bool = False, options: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """Its exit code, and what it said."""
        (self._directory / "pytest.ini").write_text("[pytest]\n")
        (self._directory / "conftest.py").write_text(RULES)
        for number, text in enumerate((STEADY, *tests)):
            (self._directory / f"test_{number}.py").write_text(text)
        # It shall not take itself for a part of the run that it is tested in.
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CI"))
        }
        environment |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | (
            {"CI": "true"} if ci else {}
        )
        command = (sys.executable, "-m", "pytest", "-p", "xdist", "-n", workers, "--color=no", *options)
        ended = subprocess.run(
            command,
            cwd=self._directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@both
def test_what_passes_alone_is_green_and_named(project: Project, workers: str) -> None:
    code, text = project.run(UNSTEADY.format("one"), UNSTEADY.format("two"), workers=workers)
    assert code == 0, text
    [named] = [
        line for line in text.splitlines() if line.startswith("UNSTEADY: passed only when run alone: ")
    ]
    assert set(named.split(": ", 2)[2].split()) == {"test_1.py::test_one", "test_2.py::test_two"}
    assert text.index("the other one was first") < text.index("UNSTEADY"), "the first failure is told above"


@both
def test_what_fails_alone_too_is_red(project: Project, workers: str) -> None:
    code, text = project.run(BROKEN.format("one"), UNSTEADY.format("two"), workers=workers)
    assert code == 1, text
    assert "second look: failed when run alone too" in text
    assert "UNSTEADY" not in text


@both
def test_four_are_too_many_for_a_second_look(project: Project, workers: str) -> None:
    code, text = project.run(*[UNSTEADY.format(number) for number in "abcd"], workers=workers)
    assert code == 1, text
    assert "second look" not in text


@both
def test_a_fixture_gets_a_second_look(project: Project, workers: str) -> None:
    code, text = project.run(IN_SETUP, workers=workers)
    assert code == 0, text
    assert "UNSTEADY: passed only when run alone: test_1.py::test_on_ground" in text


def test_a_test_that_took_its_worker_along_gets_a_second_look(project: Project) -> None:
    code, text = project.run(CRASHED, workers="2")
    assert code == 0, text
    assert "UNSTEADY: passed only when run alone: test_1.py::test_crashed" in text


@both
def test_what_cannot_be_collected_is_red(project: Project, workers: str) -> None:
    code, text = project.run("import nothing_of_this_name", UNSTEADY.format("one"), workers=workers)
    assert code != 0, text
    assert "UNSTEADY" not in text


def test_a_skip_does_not_count_as_passed(project: Project) -> None:
    code, text = project.run(SKIPPED_THEN, workers="0")
    assert code == 1, text
    assert "UNSTEADY" not in text


@both
def test_a_skip_has_to_be_accounted_for_after_a_second_look_too(project: Project, workers: str) -> None:
    code, text = project.run(SKIPPED, UNSTEADY.format("one"), workers=workers, ci=True)
    assert code == 1, text
    assert "UNSTEADY" in text
    assert "skipped without being accounted for: test_1.py::test_skipped" in text


def test_who_chose_a_test_looks_himself(project: Project) -> None:
    code, text = project.run(UNSTEADY.format("one"), workers="0", options=("-k", "one"))
    assert code == 1, text
    assert "second look" not in text


def test_the_options_of_the_run_are_kept(project: Project) -> None:
    asks = "    assert pytestconfig.getoption('--prove')\n"
    text = UNSTEADY.format("one").replace("()", "(pytestconfig)", 1) + asks
    code, said = project.run(text, workers="2", options=("--prove",))
    assert code == 0, said
