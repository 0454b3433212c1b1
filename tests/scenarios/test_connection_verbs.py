"""A connection's life from the command line, in a whole installation: the vault's grants and the gateway follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foundation.process.testing import until
from tests.scenarios.path import Receiver, push, receiving
from tests.scenarios.suite import Standing, tieline

NEW = "another secret, of the same length as no other"


class Desk:
    def __init__(self, suite: Standing, tenant: str) -> None:
        self._common = ("--data", str(suite.data), "--tenant", tenant, "--json")

    async def try_(self, *arguments: str) -> tuple[int, str, str]:
        return await tieline(*self._common, *arguments)

    async def ask(self, *arguments: str) -> Any:
        code, out, err = await self.try_(*arguments)
        assert code == 0, err
        return json.loads(out)

    async def applied(self, number: int) -> bool:
        found = await self.ask("connection", "show", "github-main")
        return int(found.get("applied_revision", 0)) == number


async def accepted(acme: Receiver, number: int, secret: str | None = None) -> int:
    return (await acme.send(push(number), f"d-{number}", secret=secret)).status_code


async def test_a_connection_is_changed_gone_back_paused_and_ended(
    shared: Standing, tenant: str, short_dir: Path
) -> None:
    async with receiving(shared, tenant) as acme:
        desk = Desk(shared, tenant)
        main = "github-main"
        (first,) = (await desk.ask("connection", "list"))["items"]
        assert first["name"].endswith(main)
        assert await accepted(acme, 1) == 202

        # Another secret: the old one counts until the revision with the new one serves.
        (short_dir / "secret").write_text(NEW)
        await desk.ask(
            "credential", "put", "second", "--kind", "webhook_secret", "--field", f"secret={short_dir}/secret"
        )
        await desk.ask("connection", "update", main, "--credential", "webhook=second", "--title", "Second")
        await until(lambda: desk.applied(2), 60)

        async def new_counts() -> bool:
            return await accepted(acme, 2, NEW) in (200, 202)

        await until(new_counts, 60)
        assert await accepted(acme, 3) == 401
        await desk.ask("connection", "rollback", main, "1")
        await until(lambda: desk.applied(3), 60)

        async def old_counts() -> bool:
            return await accepted(acme, 4) in (200, 202)

        await until(old_counts, 60)
        assert await accepted(acme, 5, NEW) == 401
        history = (await desk.ask("connection", "history", main))["items"]
        assert [one["revision"] for one in history] == ["3", "2", "1"]
        assert history[0]["rollback_of"] == "1"
        assert set(history[1]["changed_fields"]) == {"title", "credentials"}

        code, _, err = await desk.try_("connection", "update", main, "--title", "x", "--etag", first["etag"])
        assert code == 1
        assert "Read it again" in err
        code, _, err = await desk.try_("connection", "update", main, "--set", "/wrong=1")
        assert code == 1
        assert "/wrong" in err or "wrong" in err
        assert (await desk.ask("connection", "check", main))["ok"]

        # Paused: what is delivered is taken, and waits.
        paused = await desk.ask("connection", "pause", main, "--reason", "a house moves")
        assert (paused["state"], paused["failure"]["message"]) == ("STATE_PAUSED", "a house moves")
        assert await accepted(acme, 6) == 202
        assert (await desk.ask("connection", "resume", main))["state"] == "STATE_ACTIVE"

        # Many from a file: each by itself.
        many = [
            {"id": "one", "plugin": "github", "credentials": {"webhook": "second"}},
            {"id": "two", "plugin": "nothing"},
            {"id": main, "plugin": "github", "credentials": {"webhook": "github-hook"}, "title": "Applied"},
        ]
        (short_dir / "many.jsonl").write_text("\n".join(map(json.dumps, many)))
        code, out, _ = await desk.try_("connection", "apply", str(short_dir / "many.jsonl"))
        told = json.loads(out)["items"]
        assert (code, ["failure" in one for one in told]) == (1, [False, True, False])
        assert (await desk.ask("connection", "show", main))["title"] == "Applied"

        # The end: no endpoint, no grant, and what happened stays.
        await desk.ask("connection", "delete", main)

        async def gone() -> bool:
            names = [one["name"] for one in (await desk.ask("connection", "list"))["items"]]
            return not any(name.endswith(main) for name in names)

        await until(gone, 60)
        granted = (await desk.ask("credential", "grants"))["items"]
        assert {one["connection"].rpartition("/")[2] for one in granted} == {"one"}

        async def unknown() -> bool:
            return await accepted(acme, 7) == 404

        await until(unknown, 60)
        assert (await desk.ask("event", "list"))["items"]
        audited = {one["action"] for one in (await desk.ask("audit", "list", "--limit", "200"))["items"]}
        assert audited >= {
            f"connection.{word}" for word in ("update", "rollback", "pause", "resume", "apply", "delete")
        }
