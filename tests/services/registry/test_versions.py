"""Versions are ordered as semver.org has it, and ranges admit what people mean by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.catalogue.versions import ANY, Range, Version

IDENTIFIERS = st.one_of(st.integers(0, 30).map(str), st.text("abcAB-", min_size=1, max_size=3), st.just("rc"))
VERSIONS = st.builds(
    Version,
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 4),
    st.lists(IDENTIFIERS, max_size=3).map(tuple),
)


def test_the_order_that_the_specification_gives() -> None:
    ordered = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.1 1.2.0 1.10.0 2.0.0"
    versions = [Version.parse(text) for text in ordered.split()]
    assert sorted(versions[5:] + versions[:5]) == versions


@given(VERSIONS)
def test_what_is_written_is_read_again(version: Version) -> None:
    assert Version.parse(str(version)) == version


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_is_one(a: Version, b: Version, c: Version) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    assert not (a < b < c) or a < c


@pytest.mark.parametrize(
    "text", ["1", "1.2", "01.2.3", "1.2.3.4", "v1.2.3", "1.2.3-", "1.2.3-a..b", "1.2.3-01", "", "1.2.3 "]
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match=r"three numbers|leading zero"):
        Version.parse(text)


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [
        ("", "0.0.1 1.0.0 9.9.9", "1.0.0-rc.1"),
        (">=1.2,<2", "1.2.0 1.9.9", "1.1.9 2.0.0 2.0.0-rc.1 1.3.0-beta"),
        ("1.4.0", "1.4.0", "1.4.1 1.4.0-rc"),
        ("=1.4", "1.4.0", "1.4.1"),
        (">1, !=1.5.0", "1.0.1 1.5.1", "1.0.0 1.5.0"),
        (">=2.0.0-rc.1", "2.0.0-rc.1 2.0.0-rc.2 2.0.0 3.0.0", "2.0.0-beta 3.0.0-rc.1"),
        ("<=1.2.3", "1.2.3 0.1.0", "1.2.4"),
    ],
)
def test_what_a_range_admits(range_: str, inside: str, outside: str) -> None:
    parsed = Range.parse(range_)
    assert all(parsed.admits(Version.parse(text)) for text in inside.split())
    assert not any(parsed.admits(Version.parse(text)) for text in outside.split())


@pytest.mark.parametrize("text", ["^1.2", "~1", "latest", ">=1,,<2", ">= ", "1.x", ",", "1.2.3 || 2"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="is no part of a range"):
        Range.parse(text)


@given(VERSIONS)
def test_any_release_is_admitted_by_no_range(version: Version) -> None:
    assert ANY.admits(version) is not bool(version.pre)
