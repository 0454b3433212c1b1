"""Manifests on disk: read strictly, and what is refused is told with file, line and reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.registry.catalogue.manifests import BUILT_IN, Discovery, files, read
from services.registry.catalogue.toml_lines import line_of
from tests.services.registry.plugins import MANIFEST, make_plugin

GOOD = MANIFEST.format(name="one", version="1.0.0", top="", rest="")


def discover(directories: Sequence[Path]) -> Discovery:
    return Discovery.of((file, read(file)) for file in files(directories))


def refused(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "plugin.toml").write_text(text)
    (problem,) = discover([folder]).problems
    return problem.sentence.removeprefix(f"{folder}/plugin.toml:")


def test_the_plugins_that_come_along_are_found_and_nothing_is_wrong_with_them() -> None:
    discovery = discover([BUILT_IN])
    assert "github" in {found.name for found in discovery.plugins.values()}
    assert not discovery.problems


def test_a_directory_may_hold_plugins_or_be_one(tmp_path: Path) -> None:
    one, two = make_plugin(tmp_path, "one"), make_plugin(tmp_path, "two")
    assert [found.folder for found in discover([tmp_path]).plugins.values()] == [one, two]
    assert [found.folder for found in discover([two, two, tmp_path / "none"]).plugins.values()] == [two]


def test_one_bad_manifest_blocks_no_other(tmp_path: Path) -> None:
    make_plugin(tmp_path, "one")
    (make_plugin(tmp_path, "bad") / "plugin.toml").write_text("name = ")
    (make_plugin(tmp_path, "again") / "plugin.toml").write_text(GOOD)
    discovery = discover([tmp_path])
    assert [found.manifest.name for found in discovery.plugins.values()] == ["one"]
    assert [(problem.file.parent.name, problem.line) for problem in discovery.problems] == [
        ("bad", 1),
        ("one", 3),
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('name = "one"', 'nmae = "one"'), "2: /nmae: there is no such key"),
        (('name = "one"', 'name = "One"'), "2: /name: a name is"),
        (('version = "1.0.0"', 'version = "1"'), "3: /version: a version is three numbers"),
        (("contract = 1", "contract = 2"), "4: /contract: this host speaks contract 1"),
        (("contract = 1", 'contract = "1"'), "4: /contract: expected a whole number"),
        (('status = "active"', 'status = "retired"'), "5: /status: it is none of active, inactive"),
        (('capabilities = ["release"]', 'capabilities = "release"'), "7: /capabilities: a list is needed"),
        (("install = { none = true }", 'install = { none = true, npm = "." }'), "/runtime/process/install/npm: it cannot stand beside `none`"),
        (("{ word =", "{ api_token ="), "/settings_schema/properties/api_token: it looks like a secret"),
        (('uses = ["verify"]', 'uses = ["see"]'), "/credential_slots/0/uses/0: it is none of call, verify"),
        (('type = "one.said"', 'type = "two.said"'), "/event_types/0/type: a type is dotted and begins with one."),
        (('{ header = "x-signature" }', '{ header = "x", json = "/y" }'), "/webhooks/0/signature/hmac/signature/json: it cannot stand"),
        (('name = "webhook"\nuses', 'name = "other"\nuses'), "/webhooks/0/slot: there is no credential slot webhook"),
        (('[runtime.process]\ncommand = ["python", "-m", "plugin"]\ninstall = { none = true }', "[runtime]"), "/runtime: it says neither process"),
        (("[[event_types]]", '[webhooks.routing]\naccount_key = [{ header = "x-team" }]\n[[event_types]]'), "/webhooks/0/routing/account_key/0: the account must be inside what the signature covers"),
        (("properties = { word", '"$ref" = "https://x/y"\nproperties = { word'), "references outside"),
        (("[[webhooks]]", '[[streams]]\nname = "s"\ndefault_interval = "soon"\n[[webhooks]]'), "default_interval"),
        (("additionalProperties = false", "default = 2020-01-01"), "/settings_schema: it holds something"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in GOOD
    assert complaint in refused(tmp_path / "x", GOOD.replace(*change))


def test_json_may_lie_beside_and_nowhere_else(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path, "one")
    schema = '[settings_schema]\ntype = "object"\nadditionalProperties = false\nproperties = { word = { type = "string" } }'
    text = (folder / "plugin.toml").read_text()
    assert schema in text
    (folder / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    top = text.replace(schema, "").replace('title = "one"', 'title = "one"\nsettings_schema = "@schema.json"')
    (folder / "plugin.toml").write_text(top)
    (found,) = discover([folder]).plugins.values()
    assert found.manifest.settings_schema == b'{"type":"object"}'
    (folder / "plugin.toml").write_text(top.replace("@schema", "@../schema"))
    (problem,) = discover([folder]).problems
    assert "is not beside this file" in problem.sentence


def test_lines_are_found_below_tables_of_tables() -> None:
    text = "a = 1\n[[w]]\nname = 'x'\n[[w]]\n[w.s.h]\nkey = 2\n[t]\nb.c = 3"
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("w", 0, "name")) == 3
    assert line_of(text, ("w", 1, "s", "h", "key")) == 6
    assert line_of(text, ("w", 1, "s", "nothing")) == 4
    assert line_of(text, ("t", "b", "c")) == 8
    assert line_of(text, ("z",)) == 0
