"""Which versions go together: the newest of what is asked for, with all that it needs, or the reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.registry.catalogue.versions import Range, Version

STEPS = 10_000
"""Somebody's knot of ranges must not keep the host busy."""


@dataclass(frozen=True, slots=True)
class Constraint:
    plugin: str
    range: Range
    by: str
    """Who says it: `jira 1.3.0`, or empty: whoever asks."""

    @property
    def sentence(self) -> str:
        return f"{self.range} ({f'required by {self.by}' if self.by else 'asked for'})"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that may be chosen, and what it needs."""

    plugin: str
    version: Version
    needs: Sequence[tuple[str, Range]] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """Constraints that no version there is satisfies together."""

    plugin: str
    constraints: tuple[Constraint, ...]
    available: tuple[Version, ...]

    @property
    def sentence(self) -> str:
        wanted = " and ".join(constraint.sentence for constraint in self.constraints)
        there = ", ".join(map(str, self.available)) or "none"
        return f"{self.plugin}: {wanted}; there is {there}"


@dataclass(frozen=True, slots=True)
class Resolution:
    chosen: Mapping[str, Version]
    """By plugin; empty: there is none."""
    conflicts: tuple[Conflict, ...] = ()

    @property
    def why_not(self) -> str:
        return "; ".join(conflict.sentence for conflict in self.conflicts)


def resolve(available: Mapping[str, Sequence[Candidate]], plugin: str, wanted: Range) -> Resolution:
    """`available`: the versions that may be chosen, newest first."""
    search = _Search(available)
    chosen = search.extend({}, [Constraint(plugin, wanted, "")], (plugin,))
    if chosen is None:
        return Resolution({}, tuple(search.conflicts.values()))
    return Resolution({name: candidate.version for name, candidate in chosen.items()})


class _Search:
    """Newest first, one step back where that leads nowhere."""

    def __init__(self, available: Mapping[str, Sequence[Candidate]]) -> None:
        self._available = available
        self._steps = 0
        self.conflicts: dict[str, Conflict] = {}
        """The first one seen for each plugin, in the order in which they were met."""

    def extend(
        self, chosen: dict[str, Candidate], constraints: Sequence[Constraint], open_: Sequence[str]
    ) -> dict[str, Candidate] | None:
        if not open_:
            return chosen
        plugin, *rest = open_
        mine = tuple(constraint for constraint in constraints if constraint.plugin == plugin)
        candidates = self._available.get(plugin, ())
        fitting = [one for one in candidates if all(each.range.admits(one.version) for each in mine)]
        if not fitting:
            there = tuple(one.version for one in candidates)
            self.conflicts.setdefault(plugin, Conflict(plugin, mine, there))
        for one in fitting:
            self._steps += 1
            if self._steps > STEPS:
                return None
            found = self._with(one, chosen, constraints, rest)
            if found is not None:
                return found
        return None

    def _with(
        self,
        one: Candidate,
        chosen: dict[str, Candidate],
        constraints: Sequence[Constraint],
        open_: Sequence[str],
    ) -> dict[str, Candidate] | None:
        now = {**chosen, one.plugin: one}
        by = f"{one.plugin} {one.version}"
        new = [Constraint(name, range_, by) for name, range_ in one.needs]
        for constraint in new:
            there = now.get(constraint.plugin)
            if there is not None and not constraint.range.admits(there.version):
                mine = [each for each in constraints if each.plugin == constraint.plugin]
                versions = tuple(each.version for each in self._available.get(constraint.plugin, ()))
                conflict = Conflict(constraint.plugin, (*mine, constraint), versions)
                self.conflicts.setdefault(constraint.plugin, conflict)
                return None
        more = [each.plugin for each in new if each.plugin not in now and each.plugin not in open_]
        return self.extend(now, [*constraints, *new], [*open_, *dict.fromkeys(more)])
