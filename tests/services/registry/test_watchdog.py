"""What the watchdog measures while somebody else changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.registry.host.watchdog import sizes


def test_a_folder_that_vanishes_while_it_is_measured_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"x" * 10_000)
    whole = sum(sizes(tmp_path))
    assert whole >= 20_000
    measured = sizes(tmp_path)
    for _ in range(3):
        next(measured)
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / name)
    assert sum(measured) < whole
