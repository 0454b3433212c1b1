from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.sdk import Category, Change, Entity, Event, Evidence, InvalidInput
from tieline.sdk._convert.events import to_draft, to_drafts
from tieline.sdk._convert.texts import clean


def event(**more: object) -> Event:
    fields: dict[str, object] = {
        "type": "x.y",
        "title": "t",
        "external_key": "k",
        "category": Category.SYSTEM,
    }
    return Event(**fields | more)  # type: ignore[arg-type]


@given(st.text(alphabet=st.characters(), max_size=400), st.integers(10, 300))
def test_text_is_always_storable_and_never_too_long(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned.encode()) <= limit
    assert "\0" not in cleaned


@given(st.text(max_size=600), st.text(max_size=600), st.lists(st.text(max_size=30), max_size=400))
def test_whatever_a_plugin_says_fits_the_contract(title: str, name: str, paths: list[str]) -> None:
    draft = to_draft(
        event(
            title=title,
            entities=[Entity("branch", name, url=name)] * 120,
            evidence=[Evidence("log", f"https://{name}")] * 60,
            change=Change(kind=Change.Kind.COMMIT, paths=paths),
            attributes={"title": title},
        )
    )
    assert len(draft.title.encode()) <= 256
    assert "\n" not in draft.title
    assert len(draft.entities) <= 100
    assert len(draft.evidence) <= 50
    assert len(draft.change.paths) <= 300
    assert draft.change.paths_truncated == (len(paths) > 300)
    assert json.loads(draft.attributes) == {"title": title}


def test_only_https_is_a_link() -> None:
    links = ["http://x", "javascript:alert(1)", "https://good", "", "ftp://x"]
    draft = to_draft(
        event(evidence=[Evidence("log", link) for link in links], entities=[Entity("a", "b", url="http://x")])
    )
    assert [item.url for item in draft.evidence] == ["https://good"]
    assert draft.entities[0].url == ""


def test_a_key_is_never_cut() -> None:
    assert to_draft(event(external_key="ü" * 256)).external_key == "ü" * 256
    with pytest.raises(InvalidInput, match="longer than 512"):
        to_draft(event(external_key="k" * 513))


def test_attributes_that_are_too_large_are_left_out_whole() -> None:
    assert to_draft(event(attributes={"a": "x" * 70_000})).attributes == b""


def test_no_event_at_all_is_a_defect() -> None:
    with pytest.raises(ValueError, match="skip it"):
        to_drafts([])
