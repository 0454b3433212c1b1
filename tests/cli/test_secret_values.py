"""Values as a person hands them over."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from cli.secret_values import value_of
from foundation.errors import Problem


def test_an_empty_file_is_no_value(tmp_path: Path) -> None:
    """A webhook secret may be left out, and the vault makes one; who names a file means what is in it."""
    (tmp_path / "secret").touch()
    given = argparse.Namespace(field=[f"secret={tmp_path / 'secret'}"], expires=None)
    with pytest.raises(Problem, match="it is empty"):
        value_of(given, "webhook_secret")
