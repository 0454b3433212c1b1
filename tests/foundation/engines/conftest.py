"""What the tests of engines share."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation.engines.postgres import Postgres
from foundation.engines.testing import CARELESS, quick_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short directory, in memory where there is room."""
    path = quick_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_postgres(directory: Path) -> Callable[[], Postgres]:
    return lambda: Postgres(directory / "postgres", settings=CARELESS)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[3]
