"""GitHub's own examples as octokit publishes them: fetched into a cache when a test first asks, never kept by us."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "@octokit/webhooks-examples@7.6.1"
CACHE = Path(sys.prefix) / "corpora" / "octokit-webhooks-examples-7.6.1"
KINDS = ("push", "pull_request", "deployment", "deployment_status", "ping")
UNAVAILABLE = "GitHub's published examples cannot be fetched"


@cache
def examples() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Kind and payload of every example of the kinds that the plugin transforms."""
    return tuple(_read(_fetched()))


def _fetched() -> Path:
    CACHE.parent.mkdir(exist_ok=True)
    with (CACHE.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers ask at once; one of them fetches
        if not CACHE.exists():
            _fetch()
    return CACHE / "node_modules" / "@octokit" / "webhooks-examples"


def _fetch() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"{UNAVAILABLE}: there is no npm")
    draft = CACHE.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error"]
    done = subprocess.run(
        [npm, "install", *options, PACKAGE],
        cwd=draft,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if done.returncode:
        pytest.skip(f"{UNAVAILABLE}: {done.stderr.strip()[-200:]}")
    draft.rename(CACHE)


def _read(package: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(package.glob("*/index.json")):
        for kind in json.loads(file.read_bytes()):
            if kind["name"] in KINDS:
                yield from ((kind["name"], example) for example in kind["examples"])
