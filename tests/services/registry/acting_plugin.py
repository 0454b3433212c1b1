"""A plugin on the real SDK whose provider is a file: each line of `effects.jsonl` is one effect. See `acting.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from tieline.sdk import (
    Action,
    Done,
    Effect,
    Failed,
    Failure,
    FailureKind,
    Instance,
    NeverArrived,
    ObjectVersion,
    Outcome,
    Pending,
    Unknown,
    serve,
)

HERE = Path("where")


def effects() -> list[dict[str, Any]]:
    file = HERE / "effects.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def told(file: str, **what: Any) -> None:
    with (HERE / file).open("a") as log:
        log.write(json.dumps(what) + "\n")


def once(name: str) -> bool:
    """True the first time, in whichever process."""
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def opened(gate: str, key: str) -> bool:
    """For everybody, or for this one alone."""
    return (HERE / gate).exists() or (HERE / f"{gate} {key}").exists()


def refuse(how: str) -> None:
    if (HERE / "offline").exists():
        raise Failure(FailureKind.TRANSIENT, "OFFLINE", "nobody answers", effect=Effect.NONE)
    if how == "refused":
        raise Failure(FailureKind.CONFLICT, "MOVED", "it is not as you thought", effect=Effect.NONE)
    if how == "defect" and not (HERE / "mended").exists():
        raise Failure(FailureKind.INTERNAL, "DEFECT", "it is broken", effect=Effect.NONE)


class Plugin:
    async def act(self, instance: Instance, action: Action) -> Done | Pending:
        how, key = action.arguments.get("how", ""), action.key
        told("asked.jsonl", key=key, action=action.name, attempt=action.attempt, instance=instance.id)
        refuse(how)
        if action.name != "post" and any(one["key"] == key for one in effects()):
            return Done({"id": key}, replayed=True)
        if how == "die before" and once(f"died-{key}"):
            os.kill(os.getpid(), signal.SIGKILL)
        while how == "gated" and not opened("before", key):
            await asyncio.sleep(0.01)
        told("effects.jsonl", key=key, action=action.name, connection=instance.id)
        if how == "die after" and once(f"died-{key}"):
            os.kill(os.getpid(), signal.SIGKILL)
        while how in {"cut off", "gated"} and not opened("after", key):
            await asyncio.sleep(0.01)
        if how == "long":
            return Pending("job-7", ask_after=0.1)
        if how == "vague":
            raise RuntimeError("whatever it was")
        return Done({"id": key}, written=[ObjectVersion("note", key, "1")])

    async def outcome(self, instance: Instance, action: Action) -> Outcome:
        told("questions.jsonl", key=action.key, pending=action.pending_id, instance=instance.id)
        if (HERE / "offline").exists():
            raise Failure(FailureKind.TRANSIENT, "OFFLINE", "nobody answers")
        if action.arguments.get("how") == "vague":
            return Unknown()
        if action.pending_id and not (HERE / "finished").exists():
            return Pending(ask_after=0.1)
        if action.pending_id and (HERE / "failed").exists():
            return Failed(Failure(FailureKind.CONFLICT, "TOO_LATE", effect=Effect.NONE))
        found = any(one["key"] == action.key for one in effects())
        return Done({"id": action.key}) if found else NeverArrived()


if __name__ == "__main__":
    serve(Plugin())
