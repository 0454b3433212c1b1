"""Compare the contract with what it was: on a branch, where it left the default branch; else one commit ago.

A comparison with oneself would always pass, so this never makes one: it says what it compared with, or why
there was nothing to compare with. Wanted breaks stand in `breaks.toml`, each with its reason.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
BUF = Path(sys.executable).with_name("buf")
# buf refuses a module without files; the same empty ones on both sides keep it content and change nothing.
FILLERS = ("tieline/filler.proto", "tieline/common/filler.proto")


@dataclass(frozen=True)
class Base:
    commit: str
    why: str


class NothingToCompareError(Exception):
    """There is no earlier contract."""


def git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        raise NothingToCompareError("there is no git here")
    done = subprocess.run(("git", *arguments), cwd=PROTOS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def default_branch() -> str | None:
    """Origin's default branch; in a clone without a remote, the local one."""
    named = git("symbolic-ref", "--quiet", "refs/remotes/origin/HEAD")
    guesses = (named, "refs/remotes/origin/main", "refs/remotes/origin/master", "refs/heads/main")
    return next((ref for ref in guesses if ref and git("rev-parse", "--verify", "--quiet", ref)), None)


def find_base() -> Base:
    if (head := git("rev-parse", "--verify", "--quiet", "HEAD")) is None:
        raise NothingToCompareError("this is no git checkout with a commit")
    branch = default_branch()
    fork = git("merge-base", "HEAD", branch) if branch else None
    if branch and fork and fork != head:
        base = Base(fork, f"where this branch left {branch.removeprefix('refs/').partition('/')[2]}")
    elif git("status", "--porcelain", "--", "protos"):
        base = Base(head, "the last commit, because protos/ has changed since")
    elif parent := git("rev-parse", "--verify", "--quiet", "HEAD^"):
        base = Base(parent, "the commit before")
    else:
        raise NothingToCompareError("there is no commit before this one here (the first, or a shallow clone)")
    if not git("ls-tree", "-r", "--name-only", base.commit, "--", "protos/tieline"):
        raise NothingToCompareError(f"{base.commit[:12]} ({base.why}) has no protos")
    return base


def lay_out(base: Base, scratch: Path) -> tuple[Path, Path]:
    """Both contracts as trees, judged by the rules of today."""
    now, then = scratch / "now", scratch / "then"
    shutil.copytree(PROTOS, now)
    archive = subprocess.run(
        ("git", "archive", base.commit, "protos"), cwd=PROTOS.parent, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(scratch / "archive", filter="data")
    (scratch / "archive" / "protos").rename(then)
    shutil.copy(PROTOS / "buf.yaml", then)
    for tree in (now, then):
        for filler in FILLERS:
            (tree / filler).parent.mkdir(parents=True, exist_ok=True)
            (tree / filler).write_text('syntax = "proto3";\n')
    return now, then


def find_breaks(now: Path, then: Path) -> list[dict[str, str]]:
    done = subprocess.run(
        (BUF, "breaking", ".", "--against", then, "--error-format", "json"),
        cwd=now,
        capture_output=True,
        text=True,
        check=False,
    )
    breaks: list[dict[str, str]] = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode and not breaks:
        sys.exit(f"breaking: buf could not compare: {done.stderr.strip()}")
    return breaks


def approved() -> dict[tuple[str, str], str]:
    document = tomllib.loads((PROTOS / "breaks.toml").read_text())
    entries = {(entry["path"], entry["message"]): entry["reason"] for entry in document.get("break", [])}
    if document["released"] and entries:
        sys.exit("breaking: version 1 is released; breaks.toml must be empty")
    return entries


def main() -> None:
    try:
        base = find_base()
    except NothingToCompareError as nothing:
        print(f"breaking: nothing to compare with: {nothing}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        breaks = find_breaks(*lay_out(base, Path(scratch)))
    wanted = approved()
    refused = 0
    for one in breaks:
        path = one.get("path", "")  # what is gone with its whole file has no place
        reason = wanted.pop((path, one["message"]), None)
        refused += reason is None
        verdict = f"wanted: {reason}" if reason else one["type"]
        print(f"protos/{path}:{one.get('start_line', 1)}: {one['message']} ({verdict})")
    for path, message in wanted:
        print(f"protos/breaks.toml: no longer a break, remove it: {path}: {message}")
    print(f"breaking: compared with {base.commit[:12]}, {base.why}: {refused} unwanted break(s)")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
