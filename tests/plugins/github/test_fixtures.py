"""The plugin's own fixtures: a delivery and the events it must become, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests.plugins.github.conftest import FOLDER
from tests.plugins.github.test_corpus import as_served, transform
from tieline.sdk import Input, Instance, Skip, Transforms

FIXTURES = sorted((FOLDER / "fixtures").glob("*.json"))


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
async def test_a_delivery_becomes_what_stands_beside_it(github: Transforms, file: Path) -> None:
    fixture = json.loads(file.read_text())
    (outcome,) = await transform(
        as_served(github), (fixture["event_type"], json.dumps(fixture["payload"]).encode())
    )
    if outcome.HasField("skipped"):
        assert {"skipped": outcome.skipped.reason} == fixture["expected"]
        return
    drafts: list[dict[str, Any]] = []
    for draft in outcome.events.drafts:
        shown = MessageToDict(draft, preserving_proto_field_name=True)
        drafts.append(shown | {"attributes": json.loads(draft.attributes)})
    assert {"events": drafts} == fixture["expected"]


def push() -> bytes:
    return json.dumps(json.loads((FOLDER / "fixtures" / "push.json").read_text())["payload"]).encode()


@pytest.mark.parametrize(
    ("wanted", "skipped"), [(["acme/shop"], False), (["acme/other"], True), (None, False)]
)
def test_only_chosen_repositories_make_events(
    github: Transforms, wanted: list[str] | None, *, skipped: bool
) -> None:
    settings = {} if wanted is None else {"repositories": wanted}
    made = github.transform(
        Instance(id="i", revision=1, settings=settings), Input(id="1", payload=push(), event_type="push")
    )
    assert isinstance(made, Skip) == skipped


def test_the_header_wins_over_the_extracted_type(github: Transforms) -> None:
    delivery = Input(id="1", payload=b"{}", event_type="push", headers={"x-github-event": b"ping"})
    assert github.transform(Instance(id="i", revision=1, settings={}), delivery) == Skip("PING")


def test_the_sample_settings_fit_the_manifest() -> None:
    import jsonschema_rs  # noqa: PLC0415 - for this test alone

    from tests.plugins.github.test_corpus import MANIFEST  # noqa: PLC0415

    sample = json.loads((FOLDER / "settings.sample.json").read_text())
    jsonschema_rs.validate(json.loads(MANIFEST.settings_schema), sample)
