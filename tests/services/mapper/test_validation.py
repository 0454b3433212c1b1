"""The limits of the canonical event: at each of them one that fits, and one that does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mapper.stamping import stamp
from services.mapper.validation import validate
from services.mapper.verdicts import Waiting
from tests.services.mapper.test_judging import waiting
from tieline.event.v1.content_pb2 import CATEGORY_WORK, Entity, Evidence, Hint, Measurement
from tieline.plugin.v1.transform_pb2 import EventDraft

GOOD: dict[str, Any] = {
    "external_key": "k",
    "category": CATEGORY_WORK,
    "type": "jira.issue.created",
    "title": "t",
}
ENTITY = Entity(kind="commit", id="abc")


@pytest.mark.parametrize(
    ("field", "fits", "does_not", "pointer"),
    [
        ("external_key", "k" * 512, "k" * 513, "/external_key"),
        ("external_key", "é", "", "/external_key"),
        ("external_key", "a b", "a\0b", "/external_key"),
        ("ordering_key", "", "k" * 513, "/ordering_key"),
        ("title", "é" * 128, "é" * 129, "/title"),
        ("title", "x", "", "/title"),
        ("type", "azure-devops.build", "push", "/type"),
        ("type", "a.b.c", "a.>", "/type"),
        ("type", "a.b", "a. b", "/type"),
        ("category", 5, 0, "/category"),
        ("category", 1, 99, "/category"),
        ("severity", 5, 17, "/severity"),
        ("attributes", b'{"a": [1]}', b"[1]", "/attributes"),
        ("attributes", b"", b"{", "/attributes"),
        ("attributes", b'{"a":"' + b"x" * 65_000 + b'"}', b'{"a":"' + b"x" * 66_000 + b'"}', "/attributes"),
        ("attributes", b"{}", b"[" * 60_000, "/attributes"),
        ("entities", [ENTITY] * 100, [ENTITY] * 101, "/entities"),
        ("entities", [ENTITY], [Entity(kind="Commit", id="x")], "/entities/0/kind"),
        ("entities", [ENTITY], [ENTITY, Entity(kind="commit")], "/entities/1/id"),
        ("evidence", [Evidence(kind="log")] * 50, [Evidence(kind="log")] * 51, "/evidence"),
        (
            "evidence",
            [Evidence(kind="log", url="https://x")],
            [Evidence(kind="log", url="http://x")],
            "/evidence/0/url",
        ),
        ("hints", [Hint(confidence=1.0)], [Hint(confidence=float("nan"))], "/hints/0/confidence"),
        (
            "measurements",
            [Measurement(values=[0.0] * 1440)],
            [Measurement(values=[0.0] * 1441)],
            "/measurements/0/values",
        ),
        ("occurred_at", {"seconds": -62_135_596_800}, {"seconds": -62_135_596_801}, "/occurred_at"),
        ("occurred_at", {"nanos": 999_999_999}, {"nanos": -1}, "/occurred_at"),
        ("change", {"paths": ["p"] * 300}, {"paths": ["p"] * 301}, "/change/paths"),
        ("change", {}, {"began_at": {"seconds": 10**14}}, "/change/began_at"),
        ("failure", {"frames": ["f"] * 50}, {"frames": ["f"] * 51}, "/failure/frames"),
    ],
)
def test_a_limit(field: str, fits: Any, does_not: Any, pointer: str) -> None:
    assert validate(EventDraft(**(GOOD | {field: fits}))) == []
    assert [found.pointer for found in validate(EventDraft(**(GOOD | {field: does_not})))] == [pointer]


def test_a_draft_of_a_megabyte_is_too_large() -> None:
    large = EventDraft(**GOOD, evidence=[Evidence(kind="log", description="x" * 30_000)] * 50)
    assert [found.pointer for found in validate(large)] == [""]


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_whatever_bytes_a_plugin_sends_they_are_refused_or_stamped(content: bytes, attributes: bytes) -> None:
    draft = EventDraft(**GOOD, attributes=attributes)
    try:
        draft.MergeFromString(content)
    except Exception:  # noqa: BLE001  not a message at all: gRPC would have refused it
        return
    original: Waiting = waiting(1)
    if not validate(draft):
        [event] = stamp([draft], original, "1", original.received_at)
        assert (event.message.external_key, event.message.raw.sha256) == (draft.external_key, original.sha256)
        assert event.message.ParseFromString(event.message.SerializeToString())
