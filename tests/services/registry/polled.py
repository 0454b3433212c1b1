"""A plugin on the SDK that is polled, and notes when each poll began and ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.registry.plugins import make_plugin

STREAMS = """
[[streams]]
name = "items"
default_interval = "60s"
min_interval = "1s"
cursor_version = 1
backfill = true

[[streams]]
name = "parts"
default_interval = "60s"
partitioned = true
backfill = true
"""

CODE = """
import json, os, time, asyncio
from contextlib import suppress
from pathlib import Path
from tieline.sdk import (
    Category, CaughtUp, Checkpoint, Event, Failure, FailureKind, Partition, Record, Skip, Throttled, serve
)
from datetime import UTC, datetime, timedelta

HERE = Path("@HERE@")

def note(**what):
    # A confined one may not write here, and polls all the same.
    with suppress(OSError), (HERE / "polls.jsonl").open("a") as file:
        file.write(json.dumps(what | {{"pid": os.getpid(), "time": time.time()}}) + "\\n")

def told(name):
    for file in (HERE / name, Path(name)):
        if file.exists():
            return file.read_text().split()
    return []

class Plugin:
    def transform(self, instance, delivery):
        body = delivery.json()
        return Event(
            type="{name}.said", title="item " + body.need_text("n"), external_key=delivery.key, category=Category.SYSTEM
        )

    async def partitions(self, instance, stream):
        note(what="list", instance=instance.id)
        for one in told("parts"):
            yield Partition(one, title="part " + one)

    async def fetch(self, instance, poll):
        word = instance.settings.get("word", "")
        which = dict(instance=instance.id, stream=poll.stream, partition=poll.partition.id)
        note(what="begin", cursor=poll.cursor.decode(), past=poll.window is not None,
             start=poll.start_time.timestamp() if poll.start_time else None, **which)
        try:
            if word == "refused":
                raise Failure(FailureKind.AUTH_FAILED, "BAD_TOKEN", "the token is not accepted")
            if word == "forgetful" and poll.cursor and not poll.window:
                raise Failure(FailureKind.CURSOR_INVALID, "TOO_OLD", "that was long ago")
            if word == "patient":
                await poll.wait(120)
            if word == "long":
                await asyncio.sleep(120)
            at = int(poll.cursor or b"0")
            end = 6 if poll.window else at + 3
            for number in range(at, end):
                key = ("past-" if poll.window else "") + poll.partition.id + str(number)
                yield Record(key, json.dumps({{"n": str(number)}}).encode(),
                             occurred_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number))
                if word == "slow":
                    await asyncio.sleep(0.1)
                yield Checkpoint(str(number + 1).encode())
            if word == "short":
                await asyncio.sleep(0.05)
        finally:
            note(what="end", **which)

if __name__ == "__main__":
    {before}
    serve(Plugin())
"""


def make_polled(below: Path, name: str = "polled", *, version: str = "1.0.0", limits: str = "") -> Path:
    """Below `plugins` of this folder; what it notes is beside it."""
    code = CODE.replace("@HERE@", str(below))
    folder = make_plugin(below / "plugins", name, code=code, rest=STREAMS, version=version, top=limits)
    manifest = folder / "plugin.toml"
    text = manifest.read_text().replace('["release"]', '["release", "list_partitions"]')
    manifest.write_text(text.replace("min_entries = 1", "min_entries = 0"))
    return folder


@dataclass(frozen=True)
class Span:
    """One poll, by the wall clock of the machine."""

    begin: float
    end: float | None
    pid: int


def noted(below: Path, what: str = "") -> list[dict[str, Any]]:
    file = below / "polls.jsonl"
    text = file.read_text() if file.exists() else ""
    # The last line may be only half written.
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [line for line in lines if not what or line["what"] == what]


def spans(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[Span]]:
    """Every poll of every part. One without an end died with its process, or still runs."""
    found: dict[tuple[str, str, str], list[Span]] = {}
    for line in lines:
        if line["what"] not in {"begin", "end"}:
            continue
        every = found.setdefault((line["instance"], line["stream"], line["partition"]), [])
        if line["what"] == "begin":
            every.append(Span(line["time"], None, line["pid"]))
            continue
        for index, span in enumerate(every):
            if span.end is None and span.pid == line["pid"]:
                every[index] = Span(span.begin, line["time"], span.pid)
                break
    return found
