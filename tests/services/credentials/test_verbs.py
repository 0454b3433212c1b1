"""What `tieline` does with tenants, people, tokens and keys."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cli.options import parse
from foundation.errors import Problem
from foundation.process.testing import until
from tests.services.credentials.conftest import Client, Running, replica
from tests.services.credentials.test_service import make_credential
from tests.services.credentials.test_tenant_keys import finished

Tieline = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Tieline]:
    """The command, told where a service is and who asks; `fails` is what it has to say then."""

    def told(running: Running, who: str = "tl_admin") -> Tieline:
        endpoints = dict.fromkeys(("gateway", "registry", "mapper"), "127.0.0.1:1")
        endpoints |= {"credentials": running.address, "admin_token_file": str(tmp_path / "none")}
        file = tmp_path / "endpoints.json"

        async def run(*arguments: str, fails: str = "") -> Any:
            file.write_text(json.dumps(endpoints))
            monkeypatch.setenv("TIELINE_ENDPOINTS", str(file))
            monkeypatch.setenv("TIELINE_TOKEN", who)
            options = parse([*arguments, "--json"])
            verb = getattr(importlib.import_module(f"cli.{options.verb}"), options.verb)
            if fails:
                with pytest.raises(Problem, match=fails):
                    await verb(options)
                return None
            await verb(options)
            return json.loads(capsys.readouterr().out)

        return run

    return told


async def test_tenants_from_the_command_line(running: Running, told: Callable[..., Tieline]) -> None:
    run = told(running)
    await run("tenant", "create", "acme")
    suspended = await run("tenant", "suspend", "acme", "--reason", "unpaid")
    assert suspended["state"] == "STATE_SUSPENDED"
    assert (await run("tenant", "resume", "acme"))["state"] == "STATE_ACTIVE"
    await run("tenant", "delete", "acme", "--confirm", "acme", fails="write tenants/acme once more")
    assert (await run("tenant", "delete", "acme", "--confirm", "tenants/acme"))["state"] == "STATE_DELETED"
    assert (await run("tenant", "list"))["items"] == []
    [left] = (await run("tenant", "list", "--deleted"))["items"]
    assert left["name"] == "tenants/acme"


async def test_people_and_their_tokens_from_the_command_line(
    running: Running, told: Callable[..., Tieline]
) -> None:
    run = told(running)
    await run("tenant", "create", "acme")
    ada = (await run("user", "create", "Ada", "--email", "ada@acme.example"))["name"]
    await run("member", "set", ada, "--tenant", "acme", "--role", "tenant-admin")
    secret = (await run("token", "create", "--platform", "--user", ada))["secret"]
    as_ada = told(running, secret)
    made = await as_ada("token", "create", "--tenant", "acme", "--role", "tenant-admin", "--title", "laptop")
    [listed] = (await as_ada("token", "list", "--tenant", "acme"))["items"]
    assert (listed["title"], listed["principal"]) == ("laptop", ada)
    assert made["secret"] not in json.dumps(listed)
    ended = await as_ada("token", "revoke", listed["name"])
    assert ended["revoke_time"]
    [member] = (await as_ada("member", "list", "--tenant", "acme"))["items"]
    assert member["user"] == ada
    await run("member", "remove", ada, "--tenant", "acme", fails="last tenant-admin")

    assert (await run("user", "disable", ada))["disabled"]
    await as_ada("member", "list", "--tenant", "acme", fails="The token is not valid")
    assert "disabled" not in await run("user", "enable", ada)
    mine = [
        token for token in (await run("token", "list", "--platform"))["items"] if token["principal"] == ada
    ]
    await run("token", "revoke", mine[0]["name"])
    await as_ada("member", "list", "--tenant", "acme", fails="The token is not valid")
    await run("user", "delete", ada)
    assert (await run("user", "list"))["items"] == []


async def test_keys_from_the_command_line(
    running: Running, admin: Client, tmp_path: Path, told: Callable[..., Tieline]
) -> None:
    run = told(running)
    await run("tenant", "create", "acme")
    await make_credential(admin)
    rotated = await run("key", "rotate", "--tenant", "acme", "--retire")
    assert [(one["version"], one["state"]) for one in rotated["versions"]] == [
        ("2", "STATE_CURRENT"),
        ("1", "STATE_DESTROYED"),
    ]
    await run("key", "rotate", "--tenant", "acme")
    await until(lambda: finished(admin), 30)
    assert "rewrap" not in await run("key", "show", "--tenant", "acme")
    before = await run("key", "show", "--root")
    await run("key", "rotate", "--root", fails="no settings name a next one")
    await run("key", "rotate", "--root", "--retire", fails="kept until the next rotation")
    async with replica(running, root_key_next_file=str(tmp_path / "next")) as second:
        begun = await told(second)("key", "rotate", "--root", "--wait")
        assert begun["fingerprint"] == before["fingerprint"] != begun["staged_fingerprint"]
        assert begun["tenants_done"] == begun["tenants_total"] == "2"


@pytest.mark.parametrize("arguments", [["key", "show"], ["token", "list"], ["member", "list"]])
async def test_a_verb_about_a_tenant_wants_one(
    running: Running, told: Callable[..., Tieline], arguments: list[str]
) -> None:
    await told(running)(*arguments, fails="name the tenant this is about")
