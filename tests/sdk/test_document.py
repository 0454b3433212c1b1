from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieline.sdk import Document, Input, InvalidInput
from tieline.sdk.document import DocumentError

DOC = Document.parse(
    json.dumps(
        {
            "a": {
                "b": "text",
                "n": 7,
                "t": True,
                "none": None,
                "list": [{"x": 1}, {"x": 2}],
                "words": ["p", "q"],
            }
        }
    ).encode()
)


def test_what_is_there_is_read_and_what_is_not_is_empty() -> None:
    assert DOC.text("a", "b") == "text"
    assert DOC.number("a", "n") == 7
    assert DOC.flag("a", "t") is True
    assert DOC.texts("a", "words") == ["p", "q"]
    assert [item.number("x") for item in DOC.objects("a", "list")] == [1, 2]
    assert DOC.at("a").text("b") == "text"
    assert "b" in DOC.at("a")
    assert "none" not in DOC.at("a")
    assert (DOC.text("a", "none"), DOC.text("z", "y"), DOC.number("z"), DOC.flag("z")) == ("", "", 0, False)
    assert DOC.at("z").text("y") == ""
    assert list(DOC.objects("z")) == []


@pytest.mark.parametrize(
    ("read", "complaint"),
    [
        (lambda: DOC.text("a", "n"), "/a/n is of another type"),
        (lambda: DOC.number("a", "t"), "/a/t is of another type"),
        (lambda: DOC.text("a", "b", "c"), "/a/b is not an object"),
        (lambda: DOC.need_text("a", "z"), "/a/z is missing"),
        (lambda: DOC.at("a").need_number("none"), "/a/none is missing"),
        (lambda: list(DOC.objects("a", "words")), "/a/words/0 is not an object"),
        (lambda: DOC.time("a", "b"), "/a/b is not a moment"),
    ],
)
def test_anything_else_is_an_error_that_says_where(read: Any, complaint: str) -> None:
    with pytest.raises(DocumentError, match=complaint):
        read()


@pytest.mark.parametrize(
    "written", ["2026-01-01T10:00:00Z", "2026-01-01T11:00:00+01:00", 1767261600, "2026-01-01T10:00:00"]
)
def test_a_moment_may_be_written_in_several_ways(written: object) -> None:
    doc = Document.parse(json.dumps({"at": written}).encode())
    assert doc.time("at") == datetime(2026, 1, 1, 10, tzinfo=UTC)


def test_half_a_character_becomes_a_whole_one() -> None:
    assert Document.parse(b'{"a": "x\\ud800y"}').text("a") == "x?y"
    assert Document.parse(b'{"a": "\\ud83d\\ude00"}').text("a") == "\U0001f600"


@given(st.binary(max_size=200))
def test_bytes_are_a_document_or_invalid_input_and_nothing_else(raw: bytes) -> None:
    with suppress(InvalidInput):
        Input(id="1", payload=raw).json()
