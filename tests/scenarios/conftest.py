from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from itertools import count
from pathlib import Path

import pytest

from foundation.engines.testing import Served, served
from tests.scenarios.inside import inside
from tests.scenarios.path import Installation
from tests.scenarios.suite import Standing, standing

Start = Callable[[Path], AbstractAsyncContextManager[Installation]]


@pytest.fixture(scope="session")
def engines() -> Iterator[Served]:
    with served() as engines:
        yield engines


@pytest.fixture(scope="session")
def shared() -> Iterator[Standing]:
    """An installation for whoever leaves it as it was, but for tenants of his own."""
    with _installed() as suite:
        yield suite


@pytest.fixture(scope="module")
def mortal() -> Iterator[Standing]:
    """One whose parts may be killed, each once (the second time it is made to wait), if they are awaited again."""
    with _installed() as suite:
        yield suite


@contextmanager
def _installed() -> Iterator[Standing]:
    with (
        tempfile.TemporaryDirectory(prefix="tl-", dir="/tmp") as path,
        standing(Path(path) / "data") as suite,
    ):
        yield suite


@pytest.fixture
def tenant() -> str:
    """The id of a tenant that no other test has."""
    return f"acme-{next(_numbers)}"


_numbers = count(1)


@pytest.fixture(params=["one loop", "processes"])
async def installation(
    request: pytest.FixtureRequest, short_dir: Path, engines: Served, shared: Standing
) -> AsyncIterator[Installation]:
    """The same scenario with all services in this event loop, and with real processes."""
    if request.param == "one loop":
        async with inside(short_dir / "data", engines) as running:
            yield running
    else:
        yield shared
