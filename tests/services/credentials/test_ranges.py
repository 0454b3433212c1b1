from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.credentials.leases.ranges import covers, is_range

NUMBERS = st.tuples(*[st.integers(0, 50)] * 3)


def text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


@pytest.mark.parametrize(
    ("versions", "version", "covered"),
    [
        ("", "1.0.0", True),
        ("", "", True),
        (" ", "anything", True),
        (">=1.2,<2", "1.2.0", True),
        (">=1.2,<2", "1.99.3", True),
        (">=1.2,<2", "2.0.0", False),
        (">= 1.2 , < 2", "1.2.5", True),
        (">=1.2", "1.2.0-rc.1", False),
        (">=1.2.0-rc.1", "1.2.0-rc.2", True),
        (">=1.2.0-rc.2", "1.2.0-rc.10", True),
        (">1.2.0-1", "1.2.0-alpha", True),
        ("=1.2.3", "1.2.3+build.5", True),
        ("==1.2.3", "1.2.4", False),
        ("!=1.2.3", "1.2.3", False),
        (">=1.2", "", False),
        (">=1.2", "newest", False),
        ("1.2", "1.2.0", False),
        (">=1.2,", "1.2.0", False),
        (">=x", "1.2.0", False),
        ("~1.2", "1.2.0", False),
        (">=1.2.3.4", "1.2.3", False),
    ],
)
def test_what_is_covered(versions: str, version: str, covered: object) -> None:
    assert covers(versions, version) is covered


@pytest.mark.parametrize("versions", ["1.2", ">=1.2,", ">=x", "~1.2", ">=1.2 <2", ">=1.2.3.4"])
def test_what_is_no_range(versions: str) -> None:
    assert not is_range(versions)
    assert is_range(">=1.2,<2")
    assert is_range("")


@settings(max_examples=200)
@given(low=NUMBERS, high=NUMBERS, version=NUMBERS)
def test_releases_are_ordered_as_numbers(
    low: tuple[int, int, int], high: tuple[int, int, int], version: tuple[int, int, int]
) -> None:
    assert covers(f">={text(low)},<{text(high)}", text(version)) == (low <= version < high)
    assert covers(f">{text(low)},<={text(high)}", text(version)) == (low < version <= high)
    assert not covers(f">={text(version)}", f"{text(version)}-rc.1")


@settings(max_examples=200)
@given(versions=st.text(max_size=30), version=st.text(max_size=30))
def test_nothing_breaks_it(versions: str, version: str) -> None:
    assert covers(versions, version) in (True, False)
    if covers(versions, version) and versions.strip():
        assert is_range(versions)
