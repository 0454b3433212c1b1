"""Which versions go together, and what is told where none do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.catalogue.resolving import Candidate, resolve
from services.registry.catalogue.versions import ANY, Range, Version

PLUGINS = ("app", "git", "lib")
RANGES = ("", ">=1", "<2", ">=1,<2", ">=2", "=3.0.0")


def candidate(plugin: str, version: str, **needs: str) -> Candidate:
    return Candidate(
        plugin, Version.parse(version), [(name, Range.parse(text)) for name, text in needs.items()]
    )


def chosen(available: Mapping[str, Sequence[Candidate]], plugin: str, range_: str = "") -> dict[str, str]:
    found = resolve(available, plugin, Range.parse(range_)).chosen
    return {name: str(version) for name, version in found.items()}


def test_the_newest_that_goes_with_what_it_needs() -> None:
    available = {
        "jira": [candidate("jira", "2.0.0", git=">=3"), candidate("jira", "1.3.0", git=">=1,<2")],
        "git": [candidate("git", "2.0.0"), candidate("git", "1.4.0"), candidate("git", "1.3.0")],
    }
    assert chosen(available, "jira") == {"jira": "1.3.0", "git": "1.4.0"}
    assert chosen(available, "git", "<1.4") == {"git": "1.3.0"}


def test_a_conflict_names_everybody_who_has_a_part_in_it() -> None:
    available = {
        "app": [candidate("app", "1.0.0", jira=">=1", git=">=2")],
        "jira": [candidate("jira", "1.3.0", git="<2")],
        "git": [candidate("git", "2.1.0"), candidate("git", "1.4.0")],
    }
    resolution = resolve(available, "app", ANY)
    assert not resolution.chosen
    assert resolution.why_not == (
        "git: >=2 (required by app 1.0.0) and <2 (required by jira 1.3.0); there is 2.1.0, 1.4.0"
    )


def test_what_is_not_there_is_named() -> None:
    available = {"app": [candidate("app", "1.0.0", lib=">=1")]}
    assert resolve(available, "app", ANY).why_not == "lib: >=1 (required by app 1.0.0); there is none"
    assert resolve(available, "none", Range.parse(">=1")).why_not == "none: >=1 (asked for); there is none"


def test_plugins_that_need_one_another() -> None:
    available = {"a": [candidate("a", "1.0.0", b=">=1")], "b": [candidate("b", "1.0.0", a=">=1")]}
    assert chosen(available, "a") == {"a": "1.0.0", "b": "1.0.0"}


def test_a_knot_of_ranges_ends() -> None:
    available = {
        f"p{number}": [
            candidate(f"p{number}", f"{major}.0.0", **{f"p{number + 1}": ">=0"}) for major in range(9, 0, -1)
        ]
        for number in range(12)
    }
    available["p12"] = [candidate("p12", "1.0.0", nobody=">=1")]
    assert not resolve(available, "p0", ANY).chosen


WORLDS = st.fixed_dictionaries(
    {
        plugin: st.lists(
            st.tuples(
                st.integers(1, 3),
                st.dictionaries(
                    st.sampled_from([other for other in PLUGINS if other != plugin]), st.sampled_from(RANGES)
                ),
            ),
            max_size=3,
            unique_by=lambda item: item[0],
        )
        for plugin in PLUGINS
    }
)


@settings(max_examples=200)
@given(WORLDS, st.sampled_from(RANGES))
def test_it_finds_an_answer_exactly_where_there_is_one(
    world: dict[str, list[tuple[int, dict[str, str]]]], wanted: str
) -> None:
    available = {
        plugin: [
            candidate(plugin, f"{major}.0.0", **needs)
            for major, needs in sorted(versions, key=lambda v: -v[0])
        ]
        for plugin, versions in world.items()
    }
    resolution = resolve(available, "app", Range.parse(wanted))
    found = resolution.chosen
    answers = [answer for answer in _every(available) if _holds(answer, Range.parse(wanted))]
    assert bool(found) is bool(answers)
    assert found or resolution.why_not
    if found:
        answer = {
            name: next(one for one in available[name] if one.version == version)
            for name, version in found.items()
        }
        assert _holds(answer, Range.parse(wanted))
        assert found["app"] == max(one["app"].version for one in answers), "the newest that works"


def _every(available: Mapping[str, Sequence[Candidate]]) -> list[dict[str, Candidate]]:
    choices = [[None, *available[plugin]] for plugin in PLUGINS]
    return [
        {one.plugin: one for one in chosen if one is not None}
        for chosen in product(*choices)
        if chosen[0] is not None
    ]


def _holds(answer: Mapping[str, Candidate], wanted: Range) -> bool:
    return wanted.admits(answer["app"].version) and all(
        name in answer and range_.admits(answer[name].version)
        for one in answer.values()
        for name, range_ in one.needs
    )
