"""Ranges of plugin versions, as grants name them: `>=1.2,<2`. What is not understood allows nothing."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
_BOUND = re.compile(r"\s*(>=|<=|==|!=|>|<|=)\s*(\S+)\s*")

_Identifier = tuple[int, int, str]
_Version = tuple[int, int, int, int, tuple[_Identifier, ...]]

_COMPARE: Mapping[str, Callable[[_Version, _Version], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


def covers(versions: str, version: str) -> bool:
    """Whether a version is within all the bounds of a range; an empty range has none, and covers everything."""
    if not versions.strip():
        return True
    found, bounds = _parse(version), [_BOUND.fullmatch(bound) for bound in versions.split(",")]
    if found is None or None in bounds:
        return False
    return all(_within(found, bound[1], bound[2]) for bound in bounds if bound)


def is_range(versions: str) -> bool:
    """Whether `covers` understands it."""
    bounds = [_BOUND.fullmatch(bound) for bound in versions.split(",")]
    return not versions.strip() or all(bound and _parse(bound[2]) for bound in bounds)


def _within(version: _Version, relation: str, bound: str) -> bool:
    limit = _parse(bound)
    return limit is not None and _COMPARE[relation](version, limit)


def _parse(text: str) -> _Version | None:
    """Ordered as semantic versioning orders: a pre-release comes before its release, build data say nothing."""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, patch = (int(part or 0) for part in found.group(1, 2, 3))
    pre = found[4]
    identifiers = tuple(_identifier(part) for part in pre.split(".")) if pre else ()
    return major, minor, patch, 0 if pre else 1, identifiers


def _identifier(part: str) -> _Identifier:
    return (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)
