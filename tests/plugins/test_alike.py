"""Every plugin is one folder, with the same files, on the SDK alone: exactly like a stranger's."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.catalogue.manifests import BUILT_IN, read_checked

PLUGINS = sorted(path.parent for path in BUILT_IN.glob("*/plugin.toml"))
FILES = ("plugin.toml", "README.md", "settings.sample.json", "plugin/__main__.py")


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_it_has_the_files_that_every_plugin_has(folder: Path) -> None:
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert read_checked(folder / "plugin.toml").name == folder.name
    json.loads((folder / "settings.sample.json").read_text())
    assert list((folder / "fixtures").glob("*.json"))


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_of_ours_it_imports_the_sdk_and_nothing_else(folder: Path) -> None:
    imported = {name for file in folder.rglob("*.py") for name in imports(file)}
    ours = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert "tieline.sdk" in ours
    assert not {
        name for name in ours if name.partition(".")[0] in {"foundation", "services", "cli", "gateway"}
    }
    assert not {name for name in ours if name.startswith("tieline.") and name != "tieline.sdk"}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_its_readme_knows_every_event_and_setting(folder: Path) -> None:
    manifest, readme = read_checked(folder / "plugin.toml"), (folder / "README.md").read_text()
    short = [event.type.rpartition(".")[2] for event in manifest.event_types]
    settings = json.loads(manifest.settings_schema or b"{}").get("properties", {})
    assert [name for name in (*short, *settings) if name not in readme] == []


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
