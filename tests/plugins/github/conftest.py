"""The plugin as its process is: code from its own folder, which nothing else has on its path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tieline.sdk import Instance, Transforms

FOLDER = Path(__file__).parents[3] / "services" / "plugins" / "github"


@pytest.fixture(scope="session")
def github() -> Iterator[Transforms]:
    sys.path.insert(0, str(FOLDER))
    try:
        module: Any = importlib.import_module("plugin.github")
        yield module.GitHub()
    finally:
        sys.path.remove(str(FOLDER))
        for name in [name for name in sys.modules if name == "plugin" or name.startswith("plugin.")]:
            del sys.modules[name]


@pytest.fixture
def instance() -> Instance:
    return Instance(id="i", revision=1, settings={})
