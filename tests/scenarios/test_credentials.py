"""A credential that stops working, in a whole installation: who uses it is paused, people are told, and all of it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from foundation.process.testing import until
from tests.scenarios.path import Receiver, push, receiving
from tests.scenarios.suite import Standing, tieline, up
from tieline.event.v1.content_pb2 import FailureFacts
from tieline.event.v1.event_pb2 import Event


class Desk:
    """The command line, as a tenant's administrator uses it."""

    def __init__(self, suite: Standing, files: Path, tenant: str = "acme") -> None:
        self._suite, self._files, self._tenant = suite, files, tenant

    async def ask(self, *arguments: str) -> Any:
        data = ("--data", str(self._suite.data), "--tenant", self._tenant, "--json")
        code, out, err = await tieline(*data, *arguments)
        assert code == 0, err
        return json.loads(out)

    def file(self, content: str) -> str:
        path = self._files / "value"
        path.write_text(content)
        return str(path)

    async def state(self, connection: str) -> str:
        [found] = [
            one for one in (await self.ask("connection", "list"))["items"] if one["name"].endswith(connection)
        ]
        return str(found["state"])


async def notices(acme: Receiver) -> dict[str, Event]:
    return {event.type: event for event in await acme.events() if event.type.startswith("tieline.")}


async def test_a_credential_that_ends_pauses_its_connection_and_a_new_value_resumes_it(
    shared: Standing, tenant: str, short_dir: Path
) -> None:
    async with receiving(shared, tenant) as acme:
        desk = Desk(shared, short_dir, tenant)
        assert (await acme.send(push(1), "d-1")).status_code == 202
        database = await shared.database()
        try:
            # The clock cannot be turned in real processes, so its end is brought near.
            await database.execute(
                "update credentials.credentials set expires_at = now() - interval '1 second'"
                " where tenant = $1 and id = 'github-hook'",
                tenant,
            )
        finally:
            await database.close()

        async def suspended() -> bool:
            return await desk.state("github-main") == "STATE_SUSPENDED"

        await until(suspended, 60)

        async def told(type_: str) -> bool:
            return type_ in await notices(acme)

        await until(lambda: told("tieline.credential.expired"), 60)
        alarm = (await notices(acme))["tieline.credential.expired"]
        assert json.loads(alarm.attributes)["connections"] == [f"{acme.name}/connections/github-main"]
        assert alarm.failure.state == FailureFacts.STATE_FAILING
        # Nobody can verify a signature now, so nothing is accepted and nothing is lost: the provider keeps it.

        async def refused() -> bool:
            return (await acme.send(push(2), "d-2")).status_code in (401, 503)

        await until(refused, 60)
        new = "what GitHub and acme both know now"
        after = await desk.ask("credential", "rotate", "github-hook", f"--field=secret={desk.file(new)}")
        assert after["current_version"] == "2"

        async def active() -> bool:
            return await desk.state("github-main") == "STATE_ACTIVE"

        await until(active, 60)
        await until(lambda: told("tieline.credential.recovered"), 60)

        async def accepted() -> bool:
            return (await acme.send(push(2), "d-2", secret=new)).status_code in (200, 202)

        await until(accepted, 60)
        records = (await desk.ask("audit", "list"))["items"]
        assert {"credential.expire", "credential.add_version"} <= {record["action"] for record in records}
        assert (await desk.ask("audit", "verify"))["intact"] is True


async def test_a_person_is_led_to_the_provider_and_nobody_elses_answer_is_taken(
    shared: Standing, tenant: str, short_dir: Path
) -> None:
    gateway = shared.endpoints["gateway"]
    async with receiving(shared, tenant):
        desk = Desk(shared, short_dir, tenant)
        files = {
            name: short_dir / name
            for name in ("client_id", "client_secret", "authorization_url", "token_url")
        }
        for name, file in files.items():
            file.write_text(f"https://provider.example/{name}" if name.endswith("url") else "tieline")
        fields = [f"--field={name}={file}" for name, file in files.items()]
        await desk.ask("credential", "put", "login", "--kind", "oauth2_authorization_code", *fields)
        begun = await desk.ask("credential", "authorize", "login")
        assert begun["authorization_url"].startswith(gateway + "/oauth/start?ticket=")
        async with httpx.AsyncClient() as browser:
            sent = await browser.get(begun["authorization_url"])
            provider = httpx.URL(sent.headers["location"])
            assert (sent.status_code, provider.host) == (303, "provider.example")
            assert provider.params["code_challenge_method"] == "S256"
            assert provider.params["redirect_uri"] == gateway + "/oauth/callback"
            assert "HttpOnly" in sent.headers["set-cookie"]
            again = await browser.get(begun["authorization_url"])
            assert again.status_code == 400, "a ticket is good once"
        returned = {"state": provider.params["state"], "code": "stolen"}
        async with httpx.AsyncClient() as stranger:
            taken = await stranger.get(gateway + "/oauth/callback", params=returned)
        assert taken.status_code == 400
        assert "stolen" not in taken.text
        assert (await desk.ask("credential", "show", "login"))["current_version"] == "1"


async def test_the_root_key_is_changed_as_the_guide_says(short_dir: Path) -> None:
    data, settings = short_dir / "data", short_dir / "settings.toml"
    old, new = data / "keys/root-key", short_dir / "next-root-key"
    settings.write_text(f"[credentials]\nroot_key_next_file = '{new}'\n")
    async with (
        up(data, "--http", "127.0.0.1:0", "--config", str(settings)) as suite,
        receiving(suite) as acme,
    ):
        assert (await acme.send(push(1), "d-1")).status_code == 202
        before = await Desk(suite, short_dir).ask("key", "show", "--root")
        after = await Desk(suite, short_dir).ask("key", "rotate", "--root", "--wait")
        assert after["fingerprint"] == before["fingerprint"] != after["staged_fingerprint"]
    settings.write_text(f"[credentials]\nroot_key_file = '{new}'\nroot_key_next_file = '{old}'\n")
    async with up(data, "--http", "127.0.0.1:0", "--config", str(settings)) as suite:
        now = await Desk(suite, short_dir).ask("key", "show", "--root")
        assert (now["fingerprint"], now["previous_fingerprint"]) == (
            after["staged_fingerprint"],
            before["fingerprint"],
        )
    old.rename(short_dir / "kept-apart")
    settings.write_text(f"[credentials]\nroot_key_file = '{new}'\n")
    async with (
        up(data, "--http", "127.0.0.1:0", "--config", str(settings)) as suite,
        receiving(suite) as acme,
    ):
        assert (await acme.send(push(2), "d-2")).status_code == 202
        assert not old.exists()
