from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from foundation.engines.testing import Served, served
from tests.scenarios.inside import inside
from tests.scenarios.path import Installation
from tests.scenarios.suite import up

Start = Callable[[Path], AbstractAsyncContextManager[Installation]]


@pytest.fixture(scope="session")
def engines() -> Iterator[Served]:
    with served() as engines:
        yield engines


@pytest.fixture(params=["one loop", "processes"])
async def installation(
    request: pytest.FixtureRequest, short_dir: Path, engines: Served
) -> AsyncIterator[Installation]:
    """The same scenario with all services in this event loop, and with real processes."""
    if request.param == "one loop":
        async with inside(short_dir / "data", engines) as running:
            yield running
    else:
        async with up(short_dir / "data") as suite:
            yield suite
