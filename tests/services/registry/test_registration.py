"""Feature: integrations, Property 1: plugin interface standardisation.

For any set of plugins, whatever they can do and whatever is wrong with some, exactly those that keep to the
contract are registered, and the rest are named with file, line and reason. Nothing of the platform knows any of
them beforehand: each is a folder made up on the spot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.clock import SystemClock
from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.catalogue.catalogue import Catalogue, Content
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import HeldLedger
from tests.services.registry.plugins import CODE, group, hosting, served, titles

Draft = dict[str, Any]
Fault = tuple[str, Callable[[Draft], object]]

WORDS = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
PARTS = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), max_size=3, unique=True)
SECONDS = st.integers(1, 200).map(lambda number: f"{number}s")


@st.composite
def drafts(draw: st.DrawFn, name: str) -> Draft:
    """A manifest that keeps to the contract: something of everything, or of little."""
    slots = ["webhook", *(slot for slot in draw(PARTS) if slot != "webhook")]
    webhooks = draw(PARTS)
    schema = {
        "type": "object",
        "properties": {
            word: {"type": "string"}
            for word in draw(st.lists(WORDS, max_size=3))
            if word not in {"token", "secret"}
        },
    }
    draft: Draft = {
        "name": name,
        "version": ".".join(str(draw(st.integers(0, 20))) for _ in range(3)) + draw(st.sampled_from(["", "-rc.1"])),
        "contract": 1,
        "status": draw(st.sampled_from(["active", "deprecated"])),
        "title": draw(st.text(st.characters(categories=["L", "N"]), max_size=10)),
        "runtime": {"process": {"command": ["python", "-m", "plugin"], "install": {"none": True}}},
        "capabilities": draw(st.lists(st.sampled_from(["release", "lookup"]), unique=True)),
        "settings_schema": schema,
        "credential_slots": [
            {"name": slot, "uses": ["verify"], "choices": [{"kind": "webhook_secret", "fields": ["secret"]}]} for slot in slots
        ],
        "streams": [
            {"name": part, "default_interval": draw(SECONDS), "slot": draw(st.sampled_from(slots)), "cursor_version": 1}
            for part in draw(PARTS)
        ],
        "webhooks": [
            {"name": part, "slot": draw(st.sampled_from(slots)), "signature": {"hmac": {"signature": {"header": "x-signature"}}}}
            for part in webhooks
        ],
        "actions": [
            {"name": part, "input_schema": {"type": "object"}, "timeout": draw(SECONDS), "idempotency": "checked"} for part in draw(PARTS)
        ],
        "event_types": [
            {"type": f"{name}.{part}", "category": "system", "severity": "info"} for part in draw(PARTS)
        ],
        "egress": [{"host": host} for host in draw(st.lists(st.sampled_from(["api.example", "*.api.example", "${settings:/base_url}"]), unique=True))],
        "limits": {"memory_bytes": draw(st.integers(1, 2**33))},
    }  # fmt: skip
    kept = draw(st.sets(st.sampled_from(sorted(draft))))
    needed = {"name", "version", "contract", "status", "runtime", "credential_slots"}
    return {key: value for key, value in draft.items() if key in kept | needed}


def put(*place: str | int, value: Any) -> Callable[[Draft], object]:
    """A fault: this stands at that place, whatever stood there and around it."""

    def apply(draft: Draft) -> None:
        here: Any = draft
        for part in place[:-1]:
            here = here[part]
        here[place[-1]] = value

    return apply


STREAM = {"name": "s", "default_interval": "30s"}
HOOK = {"name": "w", "signature": {"hmac": {"signature": {"header": "x"}}}}
FAULTS: list[Fault] = [
    ("/name", put("name", value="No Name")),
    ("/name", put("name", value="tieline")),
    ("/version", put("version", value="1.0")),
    ("/contract", put("contract", value=2)),
    ("/contract", put("contract", value="1")),
    ("/runtime", put("runtime", value={})),
    ("/runtime/process/command", put("runtime", "process", "command", value=[])),
    ("/runtime/process/install/requirements", put("runtime", "process", "install", value={"requirements": "no.lock"})),
    ("/runtime/process/install/requirements", put("runtime", "process", "install", value={"requirements": "../x"})),
    ("/runtime/process/pass_env", put("runtime", "process", "pass_env", value=["MY_TOKEN"])),
    ("/runtime/process/programs", put("runtime", "process", "programs", value=["git > 2"])),
    ("/wings", put("wings", value=2)),
    ("/title", put("title", value=7)),
    ("/capabilities", put("capabilities", value="release")),
    ("/capabilities/0", put("capabilities", value=["fly"])),
    ("/settings_schema/properties/api_token", put("settings_schema", value={"properties": {"api_token": {}}})),
    ("/settings_schema", put("settings_schema", value={"$ref": "https://x.example/y"})),
    ("/settings_schema", put("settings_schema", value={"type": "nonsense"})),
    ("/streams/0/default_interval", put("streams", value=[{"name": "s"}])),
    ("/streams/0/min_interval", put("streams", value=[STREAM | {"min_interval": "60s"}])),
    ("/streams/0/slot", put("streams", value=[STREAM | {"slot": "none"}])),
    ("/streams/0/complements", put("streams", value=[STREAM | {"complements": "none_such"}])),
    ("/streams/1/name", put("streams", value=[STREAM, STREAM])),
    ("/webhooks/0/signature", put("webhooks", value=[{"name": "w"}])),
    ("/webhooks/0/slot", put("webhooks", value=[HOOK | {"slot": "none"}])),
    ("/webhooks/0/name", put("webhooks", value=[HOOK | {"name": "A B"}])),
    ("/actions/0/timeout", put("actions", value=[{"name": "a", "timeout": "301s"}])),
    ("/actions/0/input_schema", put("actions", value=[{"name": "a", "input_schema": {"type": 5}}])),
    ("/event_types/0/type", put("event_types", value=[{"type": "other.thing"}])),
    ("/event_types/1/type", put("event_types", value=[{"type": "{name}.x"}, {"type": "{name}.x"}])),
    ("/egress/0/host", put("egress", value=[{"host": "https://api.example"}])),
    ("/egress/0/ports", put("egress", value=[{"host": "api.example", "ports": [0]}])),
    ("/dependencies/other", put("dependencies", value={"other": "latest"})),
    ("/library", put("library", value="no_such_folder")),
    ("/limits/memory_bytes", put("limits", value={"memory_bytes": -1})),
    ("/scratch/quota_bytes", put("scratch", value={})),
    ("/credential_slots/0/choices", put("credential_slots", value=[{"name": "x"}])),
    ("/credential_slots/0/min_entries", put("credential_slots", 0, "min_entries", value=2)),
]  # fmt: skip


@st.composite
def folders(draw: st.DrawFn) -> dict[str, tuple[Draft, str]]:
    """Plugins by folder: each a manifest, and the place of its fault, empty where it has none."""
    made = {}
    for number in range(draw(st.integers(1, 4))):
        name = f"p{number}"
        draft = deepcopy(draw(drafts(name)))
        place = ""
        if draw(st.booleans()):
            place, spoil = draw(st.sampled_from(FAULTS))
            spoil(draft)
        made[name] = draft, place
    return made


def write(below: Path, name: str, draft: Draft) -> None:
    folder = below / name
    folder.mkdir(parents=True)
    lines = [f"{key} = {toml(value)}" for key, value in draft.items()]
    (folder / "plugin.toml").write_text("\n".join(lines).replace("{name}", name) + "\n")


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


async def registered(directory: Path) -> Content:
    async with Catalogue(
        [directory], HeldLedger(SystemClock()), Installer(directory / "none"), look_seconds=3600
    ) as catalogue:
        return catalogue.content


@settings(max_examples=150)
@given(folders())
async def test_exactly_those_that_keep_to_the_contract_are_registered(
    made: dict[str, tuple[Draft, str]],
) -> None:
    with TemporaryDirectory() as directory:
        for name, (draft, _) in made.items():
            write(Path(directory), name, draft)
        content = await registered(Path(directory))
    assert set(content.names()) == {name for name, (_, place) in made.items() if not place}
    told = {problem.file.parent.name: problem for problem in content.problems}
    assert set(told) == {name for name, (_, place) in made.items() if place}
    for name, problem in told.items():
        assert problem.pointer == made[name][1]
        assert problem.why
        if problem.pointer not in {"/runtime", "/scratch/quota_bytes"}:
            assert problem.line > 0, "where to look"


async def test_every_fault_is_one_by_itself(tmp_path: Path) -> None:
    """None of them hides behind another, and none is one only because of how plugins are made up here."""
    base: Draft = {
        "name": "plug",
        "version": "1.0.0",
        "contract": 1,
        "status": "active",
        "credential_slots": [],
    }
    base["runtime"] = {"process": {"command": ["x"], "install": {"none": True}}}
    base["credential_slots"] = [{"name": "webhook", "choices": [{"kind": "webhook_secret"}]}]
    write(tmp_path / "good", "plug", base)
    assert (await registered(tmp_path / "good")).names() == ["plug"]
    for number, (place, spoil) in enumerate(FAULTS):
        draft = deepcopy(base)
        spoil(draft)
        write(tmp_path / str(number), "plug", draft)
        (problem,) = (await registered(tmp_path / str(number))).problems
        assert problem.pointer == place, problem.sentence


async def test_plugins_nobody_knew_serve_at_once_beside_liars(tmp_path: Path) -> None:
    """Registered means started, proven to describe itself as its manifest does, and called."""
    (tmp_path / "p").mkdir()
    async with hosting(tmp_path / "p") as host:
        for name, title in (("first", "x"), ("second", "y"), ("liar", "z")):
            draft = {
                "name": name, "version": "1.0.0", "contract": 1, "status": "active", "title": title,
                "runtime": {"process": {"command": ["python", "-m", "plugin"], "install": {"none": True}}},
                "webhooks": [{"name": "events", "signature": {"hmac": {"signature": {"header": "x"}}}}],
                "credential_slots": [{"name": "webhook", "choices": [{"kind": "webhook_secret"}]}],
                "event_types": [{"type": f"{name}.said", "category": "system", "severity": "info"}],
                "settings_schema": {"type": "object"},
            }  # fmt: skip
            write(tmp_path / "p", name, draft)
            code = CODE.format(name=name, before="pass")
            if name == "liar":
                code = code.replace("serve(Plugin())", LIE)
            (tmp_path / "p" / name / "plugin.py").write_text(code)
        await until(lambda: len(host.processes) == 3, 30)
        ones = [served("first"), served("second")]
        broker = Broker(host, FixedConnections(*ones))
        results = await broker.transform([group(one, "hello") for one in ones])
        assert [titles(result) for result in results] == [["hello"], ["hello"]]
        liar = host.processes["liar"]
        await until(lambda: liar.state is State.FAILED, 30)
        assert "describes itself otherwise than its manifest: title" in liar.trouble


LIE = """
    from pathlib import Path
    Path("other.toml").write_text(Path("plugin.toml").read_text().replace('"z"', '"w"'))
    serve(Plugin(), Path("other.toml"))
""".strip()
