"""The manifests in `docs/decisions/` are read by the contract itself, so that paper cannot promise what it lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.contracts.manifest_toml import ManifestError, read_manifest
from tieline.plugin.v1.manifest_pb2 import Capability, Manifest
from tieline.plugin.v1.plugin_pb2 import DescribeResponse

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(DECISIONS.glob("[0-9]*-manifest-*.md"))


def toml_of(page: Path) -> str:
    found = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(found) == 1, f"{page.name} holds {len(found)} manifests"
    return str(found[0])


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    page: Path = request.param
    read = read_manifest(toml_of(page))
    assert page.stem.endswith(read.name)
    return read


def test_five_plugins_are_written_down() -> None:
    assert [page.stem.rpartition("-")[2] for page in PAGES] == [
        "github",
        "cloudwatch",
        "slack",
        "jira",
        "git",
    ]


def test_describe_can_answer_it_unchanged(manifest: Manifest) -> None:
    answer = DescribeResponse(manifest=manifest).SerializeToString()
    assert DescribeResponse.FromString(answer).manifest == manifest
    assert len(answer) < 1 << 20


def test_every_name_it_mentions_is_defined(manifest: Manifest) -> None:
    slots = {slot.name for slot in manifest.credential_slots}
    webhooks = {webhook.name for webhook in manifest.webhooks}
    actions = {action.name for action in manifest.actions}
    lookups = {lookup.name for lookup in manifest.lookups}
    streams = {stream.name for stream in manifest.streams}
    used = [user.slot for user in manifest.streams]
    used += [user.slot for user in manifest.actions] + [user.slot for user in manifest.lookups]
    assert {slot or "api" for slot in used} <= slots
    for webhook in manifest.webhooks:
        assert (webhook.slot or "webhook") in slots or webhook.signature.HasField("certificate")
        steps = webhook.provisioning
        assert {steps.create, steps.renew, steps.remove} - {""} <= actions
    assert {stream.complements for stream in manifest.streams} - {""} <= webhooks
    for slot in manifest.credential_slots:
        for choice in slot.choices:
            for scope in choice.scopes:
                assert set(scope.needed_by) <= webhooks | actions | lookups | streams


def test_it_declares_the_methods_that_it_needs(manifest: Manifest) -> None:
    capabilities = set(manifest.capabilities)
    partitioned = any(stream.partitioned for stream in manifest.streams)
    custom = any(webhook.signature.HasField("custom") for webhook in manifest.webhooks)
    assert partitioned == (Capability.CAPABILITY_LIST_PARTITIONS in capabilities)
    assert bool(manifest.lookups) == (Capability.CAPABILITY_LOOKUP in capabilities)
    assert custom == (Capability.CAPABILITY_VERIFY_WEBHOOK in capabilities)


def test_no_endpoint_is_open_and_every_timestamp_is_signed(manifest: Manifest) -> None:
    for webhook in manifest.webhooks:
        signature = webhook.signature
        assert signature.WhichOneof("scheme") not in {None, "unsigned"}
        if signature.HasField("timestamp") and signature.HasField("hmac"):
            assert signature.timestamp.at in [part.value for part in signature.hmac.signed]


def test_what_it_emits_bears_its_name_and_schemas_are_json(manifest: Manifest) -> None:
    assert all(kind.type.startswith(f"{manifest.name}.") for kind in manifest.event_types)
    schemas = [manifest.settings_schema]
    schemas += [
        schema for action in manifest.actions for schema in (action.input_schema, action.output_schema)
    ]
    assert all(json.loads(schema)["type"] == "object" for schema in schemas)


def test_only_the_plugin_with_work_trees_asks_for_scratch(manifest: Manifest) -> None:
    assert manifest.HasField("scratch") == (manifest.name == "git")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('nmae = "x"', "unknown"),
        ("[limits]\nmemory = 1", "limits: unknown"),
        ('status = "retired"', "none of"),
        ('status = "ACTIVE"', "none of"),
        ('[[actions]]\nidempotency = "unspecified"', "none of"),
        ('capabilities = "lookup"', "list"),
        ('[[streams]]\ndefault_interval = "soon"', "default_interval"),
        ("[runtime]\nprocess = {}\nremote = {}", "oneof"),
        ('contract = "one"', "contract"),
    ],
)
def test_the_reader_refuses_what_the_contract_does_not_say(text: str, complaint: str) -> None:
    with pytest.raises(ManifestError, match=complaint):
        read_manifest(text)
