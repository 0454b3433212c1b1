"""The catalogue: what lies in the directories, and what becomes of it while everything runs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from foundation.clock import SystemClock
from foundation.errors import Code, Problem
from foundation.net.addresses import Reach
from foundation.process.confined import unconfinable
from foundation.process.supervised import State
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.catalogue.catalogue import Catalogue, Published
from services.registry.catalogue.installing import Installer
from services.registry.catalogue.ledger import HeldLedger, Track
from services.registry.catalogue.versions import Range, Version
from services.registry.egress.proxy import open_egress
from services.registry.host.host import Host
from services.registry.host.places import hidden
from services.registry.host.sandbox import Sandbox, Wanted
from tests.services.registry.plugins import group, hosting, make_plugin, served, titles
from tieline.plugin.v1.manifest_pb2 import Manifest


@asynccontextmanager
async def catalogue(*directories: Path, look_seconds: float = 0.05) -> AsyncIterator[Catalogue]:
    installer = Installer(directories[0].parent / "environments")
    async with Catalogue(
        directories, HeldLedger(SystemClock()), installer, look_seconds=look_seconds
    ) as opened:
        yield opened


def versions(catalogue: Catalogue, plugin: str = "one") -> list[str]:
    return [str(one.version) for one in catalogue.content.versions(plugin)]


def published(catalogue: Catalogue, plugin: str = "one", version: str = "1.0.0") -> Published:
    return catalogue.content.published[plugin, Version.parse(version)]


def edit(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "plugin.toml"
    file.write_text(change(file.read_text()))


async def test_versions_stand_side_by_side_in_folders_of_any_name(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one", version="1.0.0", folder="one-old")
    make_plugin(tmp_path / "p", "one", version="1.10.0", folder="one/1.10.0")
    make_plugin(tmp_path / "p", "one", version="1.9.0", folder="one/1.9.0")
    async with catalogue(tmp_path / "p") as opened:
        assert versions(opened) == ["1.10.0", "1.9.0", "1.0.0"]
        newest = opened.content.newest("one", Range.parse("<1.10"))
        assert newest is not None
        assert str(newest.version) == "1.9.0"
        assert not opened.content.problems


async def test_who_comes_first_keeps_a_version_and_the_next_in_line_follows(tmp_path: Path) -> None:
    first, second = make_plugin(tmp_path / "a", "one"), make_plugin(tmp_path / "b", "one")
    async with catalogue(tmp_path / "a", tmp_path / "b") as opened:
        assert published(opened).found.folder == first
        (problem,) = opened.content.problems
        assert (problem.file.parent, problem.line) == (second, 3)
        assert f"{first} has one 1.0.0 already" in problem.sentence
        shutil.rmtree(first)
        await until(lambda: published(opened).found.folder == second, 30)
        assert not opened.content.problems


async def test_folders_come_and_go_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    async with catalogue(tmp_path / "p") as opened:
        assert not opened.content.published
        folder = make_plugin(tmp_path / "p", "one")
        await until(lambda: versions(opened) == ["1.0.0"], 30)
        (make_plugin(tmp_path / "p", "bad") / "plugin.toml").write_text("name = 'bad'\nversion = 'x'")
        await until(lambda: opened.content.problems, 30)
        assert versions(opened) == ["1.0.0"], "a bad plugin is nobody else's trouble"
        shutil.rmtree(folder)
        await until(lambda: not versions(opened), 30)
        shutil.rmtree(tmp_path / "p")
        await until(lambda: not opened.content.problems, 30)


async def test_a_published_manifest_does_not_change_under_its_version(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    async with catalogue(tmp_path / "p") as opened:
        before = published(opened)
        edit(folder, lambda text: text.replace('title = "one"', 'title = "another"'))
        await until(lambda: opened.content.problems, 30)
        assert "published with another manifest: give it a new version" in opened.content.problems[0].sentence
        assert published(opened).manifest == before.manifest
        edit(folder, lambda text: text.replace('"1.0.0"', '"1.1.0"'))
        await until(lambda: versions(opened) == ["1.1.0"], 30)
        assert not opened.content.problems
        assert published(opened, version="1.1.0").manifest.title == "another"


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        ("1.0.0", '1.0.0"', "it is not TOML"),
        ("1.0.0", "1.0", "three numbers"),
        ("title =", "titel =", "titel"),
    ],
)
async def test_a_slip_in_a_manifest_does_not_end_what_serves(
    tmp_path: Path, right: str, wrong: str, why: str
) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    whole = (folder / "plugin.toml").read_text()
    async with hosting(tmp_path / "p") as host:
        opened, process = host.catalogue, host.processes["one"]
        async with process.call(60.0):
            pid = process.pid
        edit(folder, lambda text: text.replace(right, wrong))
        await until(lambda: opened.content.problems, 30)
        assert why in opened.content.problems[0].sentence
        assert versions(opened) == ["1.0.0"]
        (folder / "plugin.toml").write_text(whole)
        await until(lambda: not opened.content.problems, 30)
        async with host.processes["one"].call(60.0):
            assert host.processes["one"].pid == pid


async def test_what_nobody_may_look_at_blocks_nobody(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one")
    (tmp_path / "p" / "astray").symlink_to("x" * 300)  # to look there is an error, for root too
    async with catalogue(tmp_path / "p") as opened:
        assert versions(opened) == ["1.0.0"]
        (problem,) = opened.content.problems
        assert "astray/plugin.toml: it cannot be read" in problem.sentence
        make_plugin(tmp_path / "p", "two")
        await until(lambda: versions(opened, "two"), 30)


async def test_the_digest_tells_of_every_file_and_of_nothing_that_tools_leave(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    async with catalogue(tmp_path / "p", look_seconds=3600) as opened:
        first = published(opened).digest
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "plugin.pyc").write_bytes(b"x")
        await opened.rescan()
        assert published(opened).digest == first
        (folder / "more.py").write_text("x = 1")
        added, removed = await opened.rescan()
        assert (added, removed) == ([], [])
        assert published(opened).digest != first


async def test_a_rescan_says_what_is_new_and_what_is_gone(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    async with catalogue(tmp_path / "p", look_seconds=3600) as opened:
        shutil.rmtree(folder)
        make_plugin(tmp_path / "p", "two")
        added, removed = await opened.rescan()
        assert [one.name for one in added] == ["two"]
        assert [one.name for one in removed] == ["one"]


async def test_what_people_decide_about_a_version_holds(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one")
    make_plugin(tmp_path / "p", "one", version="2.0.0", folder="one-2")
    key = ("one", Version.parse("2.0.0"))
    async with catalogue(tmp_path / "p") as opened:
        etag = published(opened, version="2.0.0").entry.etag
        await opened.override(key, Manifest.STATUS_DEPRECATED, etag)
        newest = opened.content.newest("one")
        assert newest is not None
        assert str(newest.version) == "1.0.0", "what is active comes first"
        only = opened.content.newest("one", Range.parse(">=2"))
        assert only is not None, "and what is on its way out still serves whoever pins it"
        with pytest.raises(Problem) as refused:
            await opened.override(key, Manifest.STATUS_ACTIVE, etag)
        assert refused.value.code is Code.CONFLICT
        await opened.override(key, Manifest.STATUS_INACTIVE, published(opened, version="2.0.0").entry.etag)
        assert opened.content.newest("one", Range.parse(">=2")) is None
        assert not published(opened, version="2.0.0").startable


async def test_what_a_plugin_needs_is_there_or_named(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "needy", top='dependencies = { other = ">=2" }')
    async with catalogue(tmp_path / "p") as opened:
        assert not published(opened, "needy").startable
        assert published(opened, "needy").failure == (
            "what it needs is not there: other: >=2 (required by needy 1.0.0); there is none"
        )
        make_plugin(tmp_path / "p", "other", version="1.9.0")
        await until(lambda: "there is 1.9.0" in published(opened, "needy").failure, 30)
        make_plugin(tmp_path / "p", "other", version="2.1.0", folder="other-2")
        await until(lambda: published(opened, "needy").startable, 30)
        shutil.rmtree(tmp_path / "p" / "other-2")
        await until(lambda: not published(opened, "needy").startable, 30)


async def test_a_library_of_another_plugin_is_imported_and_nothing_else_of_it(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "p", "lender", top='library = "shared"') / "shared"
    folder.mkdir()
    (folder / "lent.py").write_text("WORD = 'lent '")
    code = "from lent import WORD\n" + CODE_WITH_WORD
    make_plugin(tmp_path / "p", "borrower", top='libraries = { lender = ">=1,<2" }', code=code)
    async with hosting(tmp_path / "p") as host:
        one = served("borrower")
        (result,) = await Broker(host, FixedConnections(one)).transform([group(one, "x")])
        assert titles(result) == ["lent x"]


CODE_WITH_WORD = """
from tieline.sdk import Category, Event, serve

class Plugin:
    def transform(self, instance, delivery):
        return Event(
            type="{name}.said", title=WORD + delivery.json().need_text("say"), external_key="k",
            category=Category.SYSTEM,
        )

if __name__ == "__main__":
    {before}
    serve(Plugin())
"""


def wheel(folder: Path, version: str) -> str:
    """A package made on the spot, and its line for a lock file."""
    info = f"ours-{version}.dist-info"
    files = {
        "ours.py": f"WORD = 'own {version} '\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: ours\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"ours-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return f"ours=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def make_own(below: Path, version: str, folder: str) -> Path:
    """A plugin with a dependency of its own, which is nowhere but beside it."""
    where = make_plugin(
        below, "one", version=version, folder=folder, code="from ours import WORD\n" + CODE_WITH_WORD
    )
    (where / "lock.txt").write_text("--no-index\n--find-links .\n" + wheel(where, version))
    edit(
        where,
        lambda text: text.replace("install = { none = true }", 'install = { requirements = "lock.txt" }'),
    )
    return where


async def test_each_version_has_its_own_dependencies_in_its_own_environment(tmp_path: Path) -> None:
    make_own(tmp_path / "p", "1.0.0", "a")
    make_own(tmp_path / "p", "2.0.0", "b")
    async with hosting(tmp_path / "p") as host:
        await until(partial(_all_installed, host), 60)
        old, new = served("one", 1, version_range="<2"), served("one", 2, version_range=">=2")
        broker = Broker(host, FixedConnections(old, new))
        results = await broker.transform([group(old, "x"), group(new, "x")])
        assert [titles(result) for result in results] == [["own 1.0.0 x"], ["own 2.0.0 x"]]
        assert [result.plugin_version for result in results] == ["1.0.0", "2.0.0"]


async def test_who_is_installed_sooner_does_not_serve_in_place_of_who_was_chosen(tmp_path: Path) -> None:
    make_own(tmp_path / "p", "1.0.0", "a")
    make_plugin(tmp_path / "p", "one", version="2.0.0", folder="b")
    ledger, chosen = HeldLedger(SystemClock()), Version.parse("1.0.0")
    await ledger.serve("one", chosen)
    async with hosting(tmp_path / "p", ledger=ledger) as host:
        assert published(host.catalogue).pending
        await until(lambda: host.serving("one"), 60)
        assert host.serving("one") == chosen
    assert await ledger.tracks() == {"one": Track(chosen)}


async def test_what_cannot_be_started_any_more_is_not_said_to_serve(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one")
    key = ("one", Version.parse("1.0.0"))
    async with hosting(tmp_path / "p") as host:
        assert host.serving("one")
        await host.catalogue.override(key, Manifest.STATUS_INACTIVE, "1")
        await until(lambda: host.serving("one") is None, 30)


class Absent(HeldLedger):
    """Knows which versions there are, and for a while not which serve."""

    away = True

    async def tracks(self) -> Mapping[str, Track]:
        if self.away:
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="the database", why="test")
        return await super().tracks()


async def test_nothing_is_chosen_while_nobody_knows_what_was_chosen_before(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one")
    make_plugin(tmp_path / "p", "one", version="2.0.0", folder="b")
    ledger, chosen = Absent(SystemClock()), Version.parse("1.0.0")
    await ledger.serve("one", chosen)
    async with hosting(tmp_path / "p", ledger=ledger) as host:
        assert host.catalogue.content.versions("one")
        assert host.serving("one") is None
        ledger.away = False
        make_plugin(tmp_path / "p", "two")
        await until(lambda: host.serving("one"), 30)
        assert host.serving("one") == chosen


async def test_a_change_is_not_missed_by_who_was_busy_when_it_came(tmp_path: Path) -> None:
    make_plugin(tmp_path / "p", "one")
    async with catalogue(tmp_path / "p", look_seconds=3600) as opened:
        known = opened.content
        make_plugin(tmp_path / "p", "two")
        await opened.rescan()
        async with asyncio.timeout(30):
            await opened.turned(known)


async def test_its_own_dependencies_are_there_for_a_confined_plugin_too(tmp_path: Path) -> None:
    if why := await unconfinable():
        pytest.skip(f"this machine confines no process: {why}")
    make_own(tmp_path / "p", "1.0.0", "a")
    one = served("one")
    async with open_egress(Reach()) as proxy:
        sandbox = Sandbox(proxy, Wanted.CONFINED, hidden(str(tmp_path)))
        async with hosting(tmp_path / "p", sandbox=sandbox) as host:
            await until(partial(_all_installed, host), 60)
            (result,) = await Broker(host, FixedConnections(one)).transform([group(one, "x")])
            assert titles(result) == ["own 1.0.0 x"]
            assert host.processes["one"].confined


def _all_installed(host: Host) -> bool:
    return all(one.environment is not None for one in host.catalogue.content.published.values())


async def test_packages_of_node_are_installed_beside_a_copy_of_the_folder(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    folder = make_plugin(tmp_path / "p", "one")
    (folder / "ours").mkdir()
    (folder / "ours" / "package.json").write_text('{"name": "ours", "version": "1.0.0"}')
    (folder / "package.json").write_text('{"name": "one", "dependencies": {"ours": "file:ours"}}')
    packages: dict[str, Any] = {"": {"name": "one", "dependencies": {"ours": "file:ours"}}}
    packages |= {"node_modules/ours": {"resolved": "ours", "link": True}, "ours": {"version": "1.0.0"}}
    lock = {"name": "one", "lockfileVersion": 3, "requires": True, "packages": packages}
    (folder / "package-lock.json").write_text(json.dumps(lock))
    edit(folder, lambda text: text.replace("install = { none = true }", 'install = { npm = "." }'))
    async with hosting(tmp_path / "p") as host:
        await until(lambda: host.catalogue.content.published and _all_installed(host), 120)
        environment = published(host.catalogue).environment
        assert environment is not None
        assert environment.folder != folder
        assert (environment.folder / "node_modules" / "ours" / "package.json").is_file()
        assert not (folder / "node_modules").exists(), "a plugin's own folder is left as it is"
        await until(lambda: "one" in host.processes, 30)
        async with host.processes["one"].call(30):
            assert host.processes["one"].state is State.READY


async def test_what_is_not_what_the_lock_says_is_not_installed_and_blocks_nobody(tmp_path: Path) -> None:
    folder = make_own(tmp_path / "p", "1.0.0", "a")
    make_plugin(tmp_path / "p", "two")
    right = (folder / "lock.txt").read_text()
    (folder / "lock.txt").write_text(right.replace("sha256:", "sha256:00")[:-3] + "\n")
    async with hosting(tmp_path / "p") as host:
        await until(lambda: published(host.catalogue).failure, 60)
        assert published(host.catalogue).failure.startswith(
            "it is not installed: uv for one exited with code"
        )
        assert "ours" in published(host.catalogue).failure
        await until(lambda: host.processes["two"].state is State.READY, 30)
        (folder / "lock.txt").write_text(right)
        await until(lambda: host.processes.get("one"), 60)
        async with host.processes["one"].call(30):
            assert not published(host.catalogue).failure


async def test_what_serves_goes_on_until_its_new_dependencies_are_there(tmp_path: Path) -> None:
    folder = make_own(tmp_path / "p", "1.0.0", "a")
    lock = folder / "lock.txt"
    right = lock.read_text()
    one = served("one")
    async with hosting(tmp_path / "p") as host:
        await until(lambda: host.processes.get("one"), 60)
        process, broker = host.processes["one"], Broker(host, FixedConnections(one))
        assert titles((await broker.transform([group(one, "x")]))[0]) == ["own 1.0.0 x"]
        lock.write_text("nothing-that-is\n")
        await until(lambda: host.catalogue.content.problems, 60)
        assert "what was installed before is used until then" in host.catalogue.content.problems[0].sentence
        assert host.processes["one"] is process
        assert titles((await broker.transform([group(one, "x")]))[0]) == ["own 1.0.0 x"]
        lock.write_text(right + "# the same\n")
        await until(lambda: not host.catalogue.content.problems, 60)
        assert host.processes["one"] is process
        assert process.starts == 1


async def test_a_lock_without_hashes_is_no_lock(tmp_path: Path) -> None:
    folder = make_own(tmp_path / "p", "1.0.0", "a")
    (folder / "lock.txt").write_text("--no-index\n--find-links .\nours==1.0.0\n")
    async with catalogue(tmp_path / "p") as opened:
        await until(lambda: published(opened).failure, 60)
        assert "hash" in published(opened).failure


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        ('["no-such-program"]', "it needs no-such-program, and no-such-program is not on the PATH"),
        ('["python3 >= 99.1"]', "it needs python3 >= 99.1, and this is 3."),
        ('["python3 >= 3.11"]', ""),
    ],
)
async def test_programs_of_the_machine_are_looked_for(tmp_path: Path, programs: str, why: str) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    edit(folder, lambda text: text.replace("install =", f"programs = {programs}\ninstall ="))
    async with catalogue(tmp_path / "p") as opened:
        await until(lambda: published(opened).failure or published(opened).startable, 30)
        assert why in published(opened).failure
        assert published(opened).startable is not bool(why)


async def test_changed_code_is_taken_by_a_restart_that_nobody_notices(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "p", "one")
    one = served("one")
    async with hosting(tmp_path / "p") as host:
        broker = Broker(host, FixedConnections(one))
        (result,) = await broker.transform([group(one, "x")])
        assert titles(result) == ["x"]
        code = (folder / "plugin.py").read_text()
        (folder / "plugin.py").write_text(code.replace("title=word +", "title='new ' + word +"))
        process = host.processes["one"]
        await until(lambda: process.outdated, 30)
        assert "files changed" in process.explanation
        (result,) = await broker.transform([group(one, "x")])
        assert titles(result) == ["x"], "nothing changes what runs but somebody who says so"
        await host.restart(process)
        (result,) = await broker.transform([group(one, "x")])
        assert titles(result) == ["new x"]
        assert not host.processes["one"].outdated
