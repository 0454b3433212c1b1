"""The check for breaking changes can fail, compares with the right commit, and says with which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"
PLUGIN = "tieline/plugin/v1/execute.proto"
INBOX = "tieline/mapper/v1/inbox.proto"
FIELD = "  string action = 2;\n"
# Without the settings of whoever runs the tests, and without the repository that a hook may point at.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


class Clone:
    """A small repository with the real contract in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        shutil.copytree(PROTOS, root / "protos", ignore=shutil.ignore_patterns("__pycache__"))
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@localhost")

    def git(self, *arguments: str) -> None:
        subprocess.run(("git", *arguments), cwd=self.root, check=True, env=ENVIRONMENT)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")

    def edit(self, proto: str, old: str, new: str) -> None:
        path = self.root / "protos" / proto
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def check(self) -> tuple[int, str]:
        done = subprocess.run(
            (sys.executable, self.root / "protos" / "breaking.py"),
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    made = Clone(tmp_path / "clone")
    made.commit()
    return made


def test_a_first_commit_has_nothing_to_compare_with(clone: Clone) -> None:
    code, said = clone.check()
    assert code == 0
    assert said.count("\n") == 1
    assert "nothing to compare with: there is no commit before" in said


def test_a_shallow_clone_says_so(clone: Clone, tmp_path: Path) -> None:
    clone.commit()
    shallow = tmp_path / "shallow"
    clone.git("clone", "--quiet", "--depth=1", f"file://{clone.root}", str(shallow))
    done = subprocess.run(
        (sys.executable, shallow / "protos" / "breaking.py"),
        capture_output=True, text=True, check=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert "shallow clone" in done.stdout


def test_an_earlier_commit_without_protos_is_no_contract(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone")
    shutil.move(clone.root / "protos", tmp_path / "aside")
    clone.commit()
    shutil.move(tmp_path / "aside", clone.root / "protos")
    clone.commit()
    code, said = clone.check()
    assert (code, "has no protos" in said) == (0, True)


def test_what_is_only_added_passes_and_the_base_is_named(clone: Clone) -> None:
    clone.edit(PLUGIN, FIELD, FIELD + "  // More.\n  string more = 99;\n")
    clone.commit()
    code, said = clone.check()
    assert code == 0, said
    assert "the commit before: 0 unwanted" in said


@pytest.mark.parametrize(
    ("proto", "old", "new", "rule"),
    [
        (PLUGIN, FIELD, "", "FIELD_NO_DELETE"),
        (PLUGIN, FIELD, FIELD.replace("action", "verb"), "FIELD_SAME_NAME"),
        (PLUGIN, FIELD, FIELD.replace("string", "bytes"), "FIELD_SAME_TYPE"),
        (INBOX, "  bytes body = 6;\n", "", "FIELD_NO_DELETE_UNLESS"),
        (INBOX, "  bytes body = 6;\n", "  bytes body = 60;\n", "FIELD"),
        (INBOX, "RESULT_DUPLICATE = 2", "RESULT_TWICE = 2", "ENUM_VALUE_SAME_NAME"),
        (INBOX, "rpc GetInboxPressure(", "rpc LookAtInbox(", "RPC_NO_DELETE"),
        (INBOX, "service InboxService ", "service DoorService ", "PACKAGE_SERVICE_NO_DELETE"),
    ],
)
def test_what_breaks_is_refused(clone: Clone, proto: str, old: str, new: str, rule: str) -> None:
    clone.edit(proto, old, new)
    dirty, said = clone.check()
    assert (dirty, rule in said, "the last commit" in said) == (1, True, True), said
    clone.commit()
    committed, said = clone.check()
    assert (committed, "the commit before" in said) == (1, True), said


def test_a_message_that_disappears_is_refused(clone: Clone) -> None:
    (clone.root / "protos/tieline/mapper/v1/topology.proto").unlink()
    code, said = clone.check()
    assert code == 1
    assert "PACKAGE_MESSAGE_NO_DELETE" in said


def test_a_break_early_on_a_branch_is_not_forgotten(clone: Clone) -> None:
    clone.git("checkout", "--quiet", "-b", "feature")
    clone.edit(PLUGIN, FIELD, "")
    clone.commit()
    clone.commit()
    code, said = clone.check()
    assert code == 1
    assert "where this branch left main" in said


def test_origin_decides_what_the_default_branch_is(clone: Clone, tmp_path: Path) -> None:
    clone.git("clone", "--quiet", f"file://{clone.root}", str(tmp_path / "origin"))
    clone.git("remote", "add", "origin", f"file://{tmp_path / 'origin'}")
    clone.git("fetch", "--quiet", "origin")
    clone.edit(PLUGIN, FIELD, "")
    clone.commit()
    clone.commit()
    code, said = clone.check()
    assert code == 1
    assert "left origin/main" in said


def approve_all(clone: Clone, *, released: str) -> None:
    """Write down every break that the check complains about, in the words it used."""
    complaints = [line for line in clone.check()[1].splitlines() if line.startswith("protos/")]
    text = f"released = {released}\n"
    for complaint in complaints:
        place, _, rest = complaint.partition(": ")
        path = place.removeprefix("protos/").rpartition(":")[0]
        message = rest.rpartition(" (")[0]
        text += f"[[break]]\npath = '{path}'\nmessage = '{message}'\nreason = 'nobody uses it'\n"
    (clone.root / "protos" / "breaks.toml").write_text(text)


def test_a_wanted_break_needs_a_reason_and_an_unreleased_contract(clone: Clone) -> None:
    clone.edit(PLUGIN, FIELD, "")
    approve_all(clone, released="false")
    code, said = clone.check()
    assert (code, "wanted: nobody uses it" in said) == (0, True), said
    clone.edit("breaks.toml", "false", "true")
    code, said = clone.check()
    assert (code, "is released" in said) == (1, True), said


def test_an_approval_that_is_no_longer_needed_is_pointed_out(clone: Clone) -> None:
    clone.edit(PLUGIN, FIELD, "")
    approve_all(clone, released="false")
    clone.commit()
    clone.commit()
    code, said = clone.check()
    assert (code, "no longer a break" in said) == (0, True), said
