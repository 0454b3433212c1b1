"""Connections as options and files say them, before anybody is asked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from cli.connection_file import read_many
from cli.connection_wanted import changes, wanted_of
from cli.options import parse
from cli.output import document
from foundation.errors import Problem
from tests.scenarios.suite import tieline
from tieline.registry.v1.connections_pb2 import Connection, SlotBinding
from tieline.registry.v1.processes_pb2 import ISOLATION_PER_TENANT

ACME = "tenants/acme"
PRESENT = Connection(
    name=f"{ACME}/connections/main",
    settings=b'{"host":"a","list":[1,2],"deep":{"x":1}}',
    credentials=[SlotBinding(slot="api", credential=f"{ACME}/credentials/old")],
    labels={"team": "a", "kind": "b"},
)


def options(*arguments: str) -> argparse.Namespace:
    return parse(["connection", "update", "main", *arguments])


def changed(*arguments: str) -> tuple[Connection, list[str]]:
    told = options(*arguments)
    return changes(told, wanted_of(told, ACME), PRESENT)


TOML = """
[[connections]]
id = "main"
plugin = "github"
isolation = "per-tenant"
credentials = { webhook = "hook", "api/eu" = "key" }
settings = { repositories = ["acme/shop"] }
labels = { team = "a" }
"""


def test_one_connection_in_three_ways(tmp_path: Path) -> None:
    (toml := tmp_path / "c.toml").write_text(TOML)
    (one,) = read_many(str(toml), ACME)
    assert (one.name, one.plugin, one.isolation) == (
        f"{ACME}/connections/main",
        "plugins/github",
        ISOLATION_PER_TENANT,
    )
    assert [(b.slot, b.entry, b.credential) for b in one.credentials] == [
        ("webhook", "", f"{ACME}/credentials/hook"),
        ("api", "eu", f"{ACME}/credentials/key"),
    ]
    assert json.loads(one.settings) == {"repositories": ["acme/shop"]}
    one.etag = "e.1"
    (listed := tmp_path / "c.json").write_text(json.dumps({"items": [document(one)], "next_page_token": ""}))
    assert read_many(str(listed), ACME) == [one], "what `list --json` prints can be applied again"
    (lines := tmp_path / "c.jsonl").write_text(
        f"{json.dumps(document(one))}\n\n{json.dumps(document(one))}\n"
    )
    assert read_many(str(lines), ACME) == [one, one]


def test_accounts_of_an_app_are_named_or_as_they_were_printed(tmp_path: Path) -> None:
    (file := tmp_path / "c.toml").write_text(
        '[[connections]]\nid = "a"\nplugin = "github"\napp = "shared"\naccount_keys = ["1", "2"]'
    )
    [one] = read_many(str(file), ACME)
    assert (one.app, [key.key for key in one.account_keys]) == ("apps/shared", ["1", "2"])
    (printed := tmp_path / "c.json").write_text(json.dumps(document(one)))
    assert read_many(str(printed), ACME) == [one]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no connection"),
        ("[]", "no connection"),
        ("{", "neither JSON nor lines"),
        ("[1]", "connection 1 is not an object"),
        ('[{"plugin": "x"}]', "neither `id` nor `name`"),
        ('[{"id": "a"}, {"id": "b", "colour": 1}]', r"connection 2 \(b\): there is no 'colour'"),
        ('[{"id": "a", "settings": []}]', "settings are an object"),
        ('[{"id": "a", "settings": "x!"}]', "settings are an object"),
        ('[{"id": "a", "credentials": [{}]}]', r"connection 1 \(a\)"),
        ('[{"id": "a", "title": 1}]', r"connection 1 \(a\)"),
        ('[{"id": "a", "labels": {"a": 1}}]', r"connection 1 \(a\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(
    tmp_path: Path, content: str, complaint: str
) -> None:
    (file := tmp_path / "c.json").write_text(content)
    with pytest.raises(Problem, match=complaint):
        read_many(str(file), ACME)
    with pytest.raises(Problem, match="No such file"):
        read_many(str(tmp_path / "none"), ACME)


@pytest.mark.parametrize(
    ("sets", "settings"),
    [
        (['/host="b"'], {"host": "b", "list": [1, 2], "deep": {"x": 1}}),
        (["/host="], {"list": [1, 2], "deep": {"x": 1}}),
        (["/list/0=9", "/list/-=3"], {"host": "a", "list": [9, 2, 3], "deep": {"x": 1}}),
        (["/list/0="], {"host": "a", "list": [2], "deep": {"x": 1}}),
        (["/deep/y/z=true"], {"host": "a", "list": [1, 2], "deep": {"x": 1, "y": {"z": True}}}),
        (["/a~1b=1"], {"host": "a", "list": [1, 2], "deep": {"x": 1}, "a/b": 1}),
    ],
)  # fmt: skip
def test_single_settings_change_in_their_place(sets: list[str], settings: Any) -> None:
    given, mask = changed(*(word for text in sets for word in ("--set", text)))
    assert (json.loads(given.settings), mask) == (settings, ["settings"])


@pytest.mark.parametrize("text", ["host=1", "/host=b", "/list/x=1", "/list/9=1", "/host/x=1", "/host"])
def test_a_setting_without_a_place_is_refused(text: str) -> None:
    with pytest.raises(Problem):
        changed("--set", text)


def test_an_update_names_what_it_changes_and_nothing_else() -> None:
    given, mask = changed(
        "--credential", "webhook=hook", "--label", "team=c", "--label", "kind=", "--title", ""
    )
    assert mask == ["credentials", "labels", "title"]
    assert [one.slot for one in given.credentials] == ["api", "webhook"]
    assert dict(given.labels) == {"team": "c"}
    given, mask = changed("--credential", "api=")
    assert (list(given.credentials), mask) == ([], ["credentials"])
    with pytest.raises(Problem, match="nothing is to be changed"):
        changed()


async def test_a_slip_in_a_file_is_told_without_an_installation(tmp_path: Path) -> None:
    (file := tmp_path / "c.json").write_text("[1]")
    command = ("connection", "apply", str(file), "--tenant", "acme", "--data", str(tmp_path / "none"))
    code, _, err = await tieline(*command)
    assert code == 1
    assert "connection 1 is not an object" in err
