"""Semantic versions, and the ranges of them that people write: `>=1.2,<2`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Self

_NUMBER = r"(0|[1-9]\d*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?")
_CLAUSE = re.compile(rf"(>=|<=|!=|>|<|=)?\s*({_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}(?:-[0-9A-Za-z.-]+)?)?)?)")


@total_ordering
@dataclass(frozen=True)
class Version:
    """Ordered as semver.org has it: a pre-release comes before its release."""

    major: int
    minor: int
    patch: int
    pre: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Version:
        found = _VERSION.fullmatch(text)
        if found is None:
            raise ValueError("a version is three numbers, as in 1.4.0")
        pre = tuple(found[4].split(".")) if found[4] else ()
        if any(part.isdigit() and part != "0" and part.startswith("0") for part in pre):
            raise ValueError("numbers in a pre-release have no leading zero")
        return cls(int(found[1]), int(found[2]), int(found[3]), pre)

    @property
    def triple(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.patch

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __str__(self) -> str:
        number = f"{self.major}.{self.minor}.{self.patch}"
        return f"{number}-{'.'.join(self.pre)}" if self.pre else number

    def _key(self) -> tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...]]:
        # Numbers come before words, a shorter list before a longer one that begins alike.
        parts = tuple((False, int(part), "") if part.isdigit() else (True, 0, part) for part in self.pre)
        return self.triple, not self.pre, parts


@dataclass(frozen=True, slots=True)
class Clause:
    operator: str
    version: Version

    def admits(self, version: Version) -> bool:
        match self.operator:
            case ">=":
                return version >= self.version
            case "<=":
                return version <= self.version
            case ">":
                return version > self.version
            case "<":
                return version < self.version
            case "!=":
                return version != self.version
            case _:
                return version == self.version


@dataclass(frozen=True, slots=True)
class Range:
    """All of its clauses at once; none at all admits every release."""

    text: str = ""
    clauses: tuple[Clause, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        clauses = []
        for part in text.split(",") if text.strip() else ():
            found = _CLAUSE.fullmatch(part.strip())
            if found is None:
                raise ValueError(f"{part.strip()[:40]!r} is no part of a range, as in >=1.2,<2")
            clauses.append(Clause(found[1] or "=", _filled(found[2])))
        return cls(text.strip(), tuple(clauses))

    def admits(self, version: Version) -> bool:
        if version.pre and not self._names_a_pre_release_of(version):
            return False
        return all(clause.admits(version) for clause in self.clauses)

    def __str__(self) -> str:
        return self.text or "any version"

    def _names_a_pre_release_of(self, version: Version) -> bool:
        """`<2` does not mean 2.0.0-beta: whoever wants to try something unfinished says so."""
        return any(clause.version.pre and clause.version.triple == version.triple for clause in self.clauses)


ANY = Range()


def _filled(text: str) -> Version:
    """`1.2` means 1.2.0."""
    if "-" in text:
        return Version.parse(text)
    major, minor, patch = [*map(int, text.split(".")), 0, 0][:3]
    return Version(major, minor, patch)
