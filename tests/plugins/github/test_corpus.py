"""Every published example of what GitHub sends becomes a valid draft, and whatever is no example fails alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plugins.github.conftest import FOLDER
from tests.plugins.github.corpus import KINDS, examples
from tieline.common.v1.failure_pb2 import FailureKind
from tieline.event.v1.content_pb2 import Category
from tieline.plugin.v1 import instance_pb2, transform_pb2
from tieline.sdk import Transforms
from tieline.sdk._convert.service import Service
from tieline.sdk.manifest import read_manifest

MANIFEST = read_manifest(FOLDER / "plugin.toml")
TYPES = {event.type for event in MANIFEST.event_types}
INVALID = FailureKind.FAILURE_KIND_INVALID_INPUT

Transform = Callable[..., "list[transform_pb2.TransformOutcome]"]


def as_served(github: Transforms) -> Service:
    return Service(github, MANIFEST, b"", lambda _: None)


async def transform(service: Service, *inputs: tuple[str, bytes]) -> list[transform_pb2.TransformOutcome]:
    """Through the SDK's own border, as one call from the host."""
    await service.initialize(
        instance_pb2.InitializeRequest(instance_id="i", config_revision=1, settings=b"{}")
    )
    group = transform_pb2.TransformGroup(
        context=instance_pb2.InstanceContext(instance_id="i", config_revision=1),
        inputs=[
            transform_pb2.TransformInput(
                input_id=str(number),
                webhook="events",
                payload=payload,
                event_type=kind,
                key=f"delivery-{number}",
            )
            for number, (kind, payload) in enumerate(inputs)
        ],
    )
    answer = await service.transform_data(transform_pb2.TransformDataRequest(groups=[group]))
    assert not answer.results[0].HasField("failure")
    return list(answer.results[0].outcomes)


async def test_every_example_becomes_a_valid_draft(github: Transforms, found: Callable[[str], None]) -> None:
    inputs = [(kind, json.dumps(payload).encode()) for kind, payload in examples()]
    outcomes = await transform(as_served(github), *inputs)
    assert outcomes == await transform(as_served(github), *inputs), "the same input gives the same events"
    kinds = Counter(kind for kind, _ in inputs)
    assert set(kinds) == set(KINDS)
    for (kind, _), outcome in zip(inputs, outcomes, strict=True):
        if kind == "ping":
            assert outcome.skipped.reason == "PING"
            continue
        (draft,) = outcome.events.drafts
        check(draft)
    types = Counter(draft.type for outcome in outcomes for draft in outcome.events.drafts)
    found(f"{len(inputs)} examples {dict(kinds)} -> {dict(types)}")


def check(draft: transform_pb2.EventDraft) -> None:
    """The limits that the contract sets."""
    assert draft.type in TYPES
    assert draft.category == Category.CATEGORY_DELIVERY
    assert draft.title
    assert len(draft.title.encode()) <= 256
    assert 0 < len(draft.external_key.encode()) <= 512
    assert draft.ordering_key
    assert draft.HasField("occurred_at")
    assert 3 <= len(draft.entities) <= 100
    assert len({(entity.kind, entity.id) for entity in draft.entities}) == len(draft.entities)
    assert sum(entity.part == 1 for entity in draft.entities) == 1, "one subject"
    assert {"repository"} <= {entity.kind for entity in draft.entities}
    assert len(draft.evidence) <= 50
    assert all(item.url.startswith("https://") for item in draft.evidence)
    assert draft.evidence or draft.type.endswith(".deleted")
    assert isinstance(json.loads(draft.attributes), dict)
    assert draft.HasField("change") == (
        draft.type.rpartition(".")[2] in {"push", "merged", "created", "succeeded"}
    )


def mutated(payload: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Truncated anywhere, or with anything in the place of one value."""
    raw = json.dumps(payload).encode()
    paths = list(_paths(payload))
    strange: st.SearchStrategy[Any] = st.sampled_from(
        [None, 0, -1, 1.5, True, "", "\ud800", "\0", "x" * 3000, [], {}, [[]], 10**400, [1]]
    )
    return st.one_of(
        st.integers(0, len(raw) - 1).map(lambda length: raw[:length]),
        st.tuples(st.sampled_from(paths), strange).map(lambda change: _replaced(payload, *change)),
    )


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _replaced(payload: dict[str, Any], path: tuple[Any, ...], value: Any) -> bytes:
    copy: Any = json.loads(json.dumps(payload))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return json.dumps(copy).encode()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_damaged_example_fails_alone_or_is_still_valid(
    github: Transforms, data: st.DataObject
) -> None:
    kind, payload = data.draw(st.sampled_from([item for item in examples() if item[0] != "ping"]))
    damaged = data.draw(mutated(payload))
    good = (kind, json.dumps(payload).encode())
    before, hurt, after = await transform(as_served(github), good, (kind, damaged), good)
    assert before.WhichOneof("outcome") == after.WhichOneof("outcome") == "events"
    if hurt.WhichOneof("outcome") == "failure":
        assert hurt.failure.kind == INVALID
        assert len(hurt.failure.message) <= 1024
    else:
        (draft,) = hurt.events.drafts
        assert draft.external_key
        assert draft.title
        draft.SerializeToString()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS[:-1]), garbage=st.binary(max_size=300))
async def test_garbage_is_invalid_input(github: Transforms, kind: str, garbage: bytes) -> None:
    (outcome,) = await transform(as_served(github), (kind, garbage))
    assert outcome.failure.kind == INVALID


async def test_deep_and_strange_json_is_invalid_input(github: Transforms) -> None:
    strange = [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"NaN",
        b"[1]",
        b"{}",
        b'"x"',
        b"\xef\xbb\xbf{}",
        b'{"n": ' + b"9" * 5000 + b"}",
    ]
    outcomes = await transform(as_served(github), *(("push", payload) for payload in strange))
    assert [outcome.failure.kind for outcome in outcomes] == [INVALID] * len(strange)


async def test_what_the_plugin_does_not_know_is_skipped(github: Transforms) -> None:
    (outcome,) = await transform(as_served(github), ("check_run.completed", b"{}"))
    assert outcome.skipped.reason == "NOT_HANDLED"
