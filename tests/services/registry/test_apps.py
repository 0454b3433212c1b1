"""Apps: shared by tenants, whose accounts are theirs only where that is known, and told to the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from foundation.errors import Code, Problem
from foundation.process.testing import until
from tests.services.registry.choosy import People, bound, make_choosy, people
from tests.services.registry.conftest import ADMIN, FOREIGN, GATEWAY, Running
from tests.services.registry.test_flags import PLATFORM
from tieline.credentials.v1.credentials_pb2 import PURPOSE_WEBHOOK_VERIFY
from tieline.plugin.v1.webhook_pb2 import Routing
from tieline.registry.v1 import apps_pb2 as apps
from tieline.registry.v1 import apps_pb2_grpc, endpoints_pb2_grpc
from tieline.registry.v1 import connections_pb2 as pb
from tieline.registry.v1.endpoints_pb2 import Endpoint, WatchEndpointsRequest

APP = "apps/shared"
CLAIMED, PROVEN, APPROVED = (
    pb.AccountKey.CLAIM_CLAIMED,
    pb.AccountKey.CLAIM_PROVEN,
    pb.AccountKey.CLAIM_APPROVED,
)
ROUTING = """
[webhooks.routing]
account_key = [{ json = "/account" }]
unmatched = "discard"
"""


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> None:
    where = make_choosy(tmp_path / "plugins")
    manifest = where / "plugin.toml"
    text = manifest.read_text().replace(
        'uses = ["verify"]', 'uses = ["verify"]\nmin_entries = 1\nholder = "connection_or_app"'
    )
    assert "\n[[event_types]]" in text
    text = text.replace("\n[[event_types]]", ROUTING + "\n[[event_types]]", 1)
    code = where / "plugin.py"
    proof = 'account_keys=["account of " + token.decode()]'
    changed = (
        ('title=word + ":"', 'title=",".join(instance.account_keys) + "|" + word + ":"'),
        (proof, 'account_keys=[] if os.path.exists("left") else ["account of " + token.decode()]'),
    )
    text_of_code = code.read_text()
    for before, after in changed:
        assert before in text_of_code
        text_of_code = text_of_code.replace(before, after)
    code.write_text(text_of_code)
    manifest.write_text(text)


@pytest.fixture(autouse=True)
def credentials(plugin: None, registry: Running) -> None:  # noqa: ARG001 - it is there before the registry
    for tenant in ("acme", "other", "owner"):
        for name in ("token", "other", "app-hook", "second-hook"):
            full = f"tenants/{tenant}/credentials/{name}"
            registry.vault.credentials.add(full)
            registry.vault.tokens[full] = name.encode()


@dataclass
class Root:
    """Who runs the platform."""

    stub: Any
    running: Running

    async def make(self, id_: str = "shared", *, request_id: str = "", **changed: Any) -> apps.App:
        fields: dict[str, Any] = {
            "plugin": "plugins/choosy",
            "owner": "tenants/owner",
            "credentials": [bound("webhook", "app-hook", "owner")],
        } | changed
        made: apps.App = await self.stub.CreateApp(
            apps.CreateAppRequest(app_id=id_, app=apps.App(**fields), request_id=request_id)
        )
        return made

    async def update(self, before: apps.App, mask: Sequence[str], **fields: Any) -> apps.App:
        given = apps.App(name=before.name, etag=before.etag, **fields)
        changed: apps.App = await self.stub.UpdateApp(
            apps.UpdateAppRequest(app=given, update_mask=FieldMask(paths=mask))
        )
        return changed

    async def delete(self, etag: str = "", name: str = APP) -> None:
        await self.stub.DeleteApp(apps.DeleteAppRequest(name=name, etag=etag))

    async def approve(self, connection: str, key: str) -> pb.Connection:
        approved: pb.Connection = await self.stub.ApproveAccountKey(
            apps.ApproveAccountKeyRequest(connection=connection, account_key=key)
        )
        return approved


@asynccontextmanager
async def everybody(registry: Running) -> AsyncIterator[tuple[Root, People, People]]:
    async with (
        registry.as_(PLATFORM) as root,
        people(registry) as ada,
        people(registry, FOREIGN, "other") as mallory,
    ):
        yield Root(apps_pb2_grpc.AppServiceStub(root), registry), ada, mallory


async def refusal(call: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        await call
    return refused.value


async def picture(registry: Running) -> list[Endpoint]:
    async with registry.as_(GATEWAY) as channel:
        watch = endpoints_pb2_grpc.EndpointServiceStub(channel).WatchEndpoints(WatchEndpointsRequest())
        async for told in watch:
            watch.cancel()
            return list(told.endpoints)
    return []


async def routes(registry: Running, wanted: dict[str, str]) -> Endpoint:
    """The app's endpoint, once it has these."""
    found = Endpoint()

    async def is_so() -> bool:
        nonlocal found
        of_app = [one for one in await picture(registry) if one.app == APP]
        found = of_app[0] if of_app else found
        return bool(of_app) and dict(found.routes) == wanted

    await until(is_so, 60)
    return found


def keys(*names: str) -> list[pb.AccountKey]:
    return [pb.AccountKey(key=name, claim=APPROVED) for name in names]


def claims(connection: pb.Connection) -> dict[str, int]:
    return {one.key: one.claim for one in connection.account_keys}


async def test_accounts_receive_where_they_are_proven_or_approved_and_nowhere_else(registry: Running) -> None:
    async with everybody(registry) as (root, ada, mallory):
        made = await root.make(title="Shared")
        url = made.webhook_urls["events"]
        assert url.startswith("https://hooks.acme.example/hooks/")
        ((who, grant),) = registry.vault.granted.values()
        assert (who, grant.app, grant.connection, grant.service) == ("users/root", APP, "", "gateway")
        assert grant.purpose == PURPOSE_WEBHOOK_VERIFY

        mine = "account of token"
        main = await ada.make("main", "", bound("api", "token"), app=APP, account_keys=keys(mine, "42"))
        assert claims(main) == {mine: PROVEN, "42": CLAIMED}, "a caller cannot say how an account is known"
        assert not main.webhook_urls, "it has no secret of its own, so no endpoint of its own"
        endpoint = await routes(registry, {mine: main.name})
        assert url.endswith(endpoint.endpoint)
        assert (endpoint.app_owner, endpoint.unmatched) == ("tenants/owner", Routing.UNMATCHED_DISCARD)
        assert endpoint.credential == "tenants/owner/credentials/app-hook"
        assert await ada.titles() == [f"{mine}|hello:"]

        # Whoever only says that an account is theirs gets nothing of it, proven or not.
        theirs = await mallory.make(
            "main", "", bound("api", "other", "other"), app=APP, account_keys=keys(mine, "42")
        )
        assert claims(theirs) == {mine: CLAIMED, "42": CLAIMED}
        assert await mallory.titles() == ["|hello:"]
        assert claims(await root.approve(theirs.name, "42")) == {mine: CLAIMED, "42": APPROVED}
        for connection, key in ((main.name, "42"), (theirs.name, mine)):
            assert (await refusal(root.approve(connection, key))).code is Code.ALREADY_EXISTS
        assert (await refusal(root.approve(main.name, "43"))).code is Code.NOT_FOUND
        await routes(registry, {mine: main.name, "42": theirs.name})
        assert await mallory.titles() == ["42|hello:"]
        assert claims(await ada.get())["42"] == CLAIMED
        said = ("app.approve_account_key", theirs.name, "DONE")
        await until(lambda: said in registry.audit.said, 30)

        # A proof is as good as the credential: with another one it is gone; so is an approval with its claim.
        await ada.update(main, ["credentials"], credentials=[bound("api", "other")])
        assert claims(await ada.applied()) == {mine: CLAIMED, "42": CLAIMED}
        await routes(registry, {"42": theirs.name})
        await mallory.update(theirs, ["account_keys"], account_keys=[])
        freed = await mallory.applied()
        await mallory.update(freed, ["account_keys"], account_keys=keys("42"))
        assert claims(await mallory.applied()) == {"42": CLAIMED}
        assert claims(await root.approve(ada.name("main"), "42"))["42"] == APPROVED
        await routes(registry, {"42": main.name})

        # What ends sets its accounts free.
        assert (await refusal(root.delete())).code is Code.STATE_REFUSES
        await ada.delete("main")
        await ada.gone("main")
        await routes(registry, {})
        assert claims(await root.approve(mallory.name("main"), "42"))["42"] == APPROVED


async def refuse_what_cannot_be(root: Root, ada: People) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"plugin": "plugins/none"}, "there is no plugin"),
        ({"owner": "owner"}, "tenants/"),
        ({"credentials": []}, "the slot webhook needs a credential"),
        ({"credentials": [bound("api", "token", "owner")]}, "each connection's own"),
        ({"credentials": [bound("nope", "token", "owner")]}, "no slot 'nope'"),
        ({"credentials": [bound("webhook", "app-hook")]}, "another tenant than the app's owner"),
        ({"credentials": [bound("webhook", "app-hook", "owner")] * 2}, "filled twice"),
        ({"settings": b"[]"}, "not a JSON object"),
        ({"unmatched": 77}, "no such policy"),
        ({"title": "x" * 257}, "longer than"),
    )
    for fields, complaint in wrong:
        problem = await refusal(root.make("another", **fields))
        assert problem.code is Code.INVALID_ARGUMENT, fields
        assert complaint in problem.text, problem.text
    unknown = await refusal(root.make("another", credentials=[bound("webhook", "none", "owner")]))
    assert unknown.code is Code.NOT_FOUND
    assert (await refusal(root.stub.GetApp(apps.GetAppRequest(name="apps/another")))).code is Code.NOT_FOUND
    assert "does not name" not in (await refusal(ada.make("x", app="apps/none"))).text


async def test_an_app_is_made_once_changed_with_care_and_removed_when_nobody_uses_it(
    registry: Running,
) -> None:
    async with everybody(registry) as (root, ada, _):
        first = await root.make(request_id="r1")
        assert await root.make(request_id="r1") == first
        for other in (
            root.make(request_id="r1", title="x"),
            root.make(),
            root.make("second", request_id="r1"),
        ):
            assert (await refusal(other)).code is Code.ALREADY_EXISTS

        await refuse_what_cannot_be(root, ada)
        # Settings: the connection's own over those of the app, for the plugin and in every check.
        calm = await root.update(first, ["settings", "unmatched"], settings=b'{"word": "calm"}', unmatched=1)
        await ada.make("plain", "", app=APP)
        await ada.make("own", "mine", app=APP)
        assert (await ada.titles("plain"), await ada.titles("own")) == (["|hello:calm"], ["|hello:mine"])
        loud = await root.update(calm, ["settings"], settings=b'{"word": "loud"}')

        async def has_come() -> bool:
            return await ada.titles("plain") == ["|hello:loud"]

        await until(has_come, 60)
        breaking = await refusal(root.update(loud, ["settings"], settings=b'{"word": 1}'))
        assert "connections/plain would not fit any more" in breaking.text
        for mask, complaint in (
            (["plugin"], "never changes"),
            (["owner"], "never changes"),
            (["colour"], "may not"),
            ([], "empty"),
        ):
            assert complaint in (await refusal(root.update(loud, mask))).text
        assert (await refusal(root.update(first, ["title"], title="lost"))).code is Code.CONFLICT
        page = await root.stub.ListApps(apps.ListAppsRequest(page_size=1))
        assert ([one.name for one in page.apps], page.next_page_token) == ([APP], "")

        # Another secret: granted before it is used, and the former one ends.
        swapped = await root.update(
            loud, ["credentials"], credentials=[bound("webhook", "second-hook", "owner")]
        )
        granted = {grant.name.split("/")[3] for _, grant in registry.vault.granted.values() if grant.app}
        assert granted == {"second-hook"}
        assert swapped.webhook_urls == first.webhook_urls

        used = await refusal(root.delete(swapped.etag))
        assert used.code is Code.STATE_REFUSES
        assert "connections/own, tenants/acme/connections/plain" in used.text
        for id_ in ("plain", "own"):
            await ada.delete(id_)
            await ada.gone(id_)
        assert (await refusal(root.delete(first.etag))).code is Code.CONFLICT
        registry.vault.away = True
        assert (await refusal(root.delete(swapped.etag))).code is Code.DEPENDENCY_UNAVAILABLE
        assert (await root.stub.GetApp(apps.GetAppRequest(name=APP))).etag == swapped.etag, "nothing was done"
        registry.vault.away = False
        registry.audit.away = True
        assert (await refusal(root.delete(swapped.etag))).code is Code.DEPENDENCY_UNAVAILABLE
        registry.audit.away = False
        await root.delete(swapped.etag)
        await root.delete(swapped.etag)
        assert not [grant for _, grant in registry.vault.granted.values() if grant.app]

        async def is_forgotten() -> bool:
            return not [one for one in await picture(registry) if one.app]

        await until(is_forgotten, 60)
        said = {action for action, _, _ in registry.audit.said}
        assert {"app.create", "app.update", "app.delete"} <= said
    async with registry.as_(ADMIN) as channel:
        stub = apps_pb2_grpc.AppServiceStub(channel)
        for call in (
            stub.GetApp(apps.GetAppRequest(name=APP)),
            stub.ApproveAccountKey(apps.ApproveAccountKeyRequest(connection="tenants/acme/connections/x")),
        ):
            assert (await refusal(call)).code is Code.ROLE_MISSING


async def test_of_many_who_are_given_one_account_at_once_one_has_it(registry: Running) -> None:
    async with everybody(registry) as (root, ada, mallory):
        await root.make()
        made = [await ada.make(f"c{n}", "", app=APP, account_keys=keys("7")) for n in range(3)]
        made += [await mallory.make(f"c{n}", "", app=APP, account_keys=keys("7")) for n in range(3)]
        answers = await asyncio.gather(*(root.approve(one.name, "7") for one in made), return_exceptions=True)
        won = [one for one in answers if isinstance(one, pb.Connection)]
        lost = {one.code for one in answers if isinstance(one, Problem)}
        assert (len(won), lost) == (1, {Code.ALREADY_EXISTS})
        await routes(registry, {"7": won[0].name})


async def test_who_no_longer_controls_an_account_stops_receiving_for_it(
    registry: Running, tmp_path: Path
) -> None:
    mine = "account of token"
    async with everybody(registry) as (root, ada, _):
        await root.make()
        main = await ada.make("main", "", bound("api", "token"), app=APP, account_keys=keys(mine))
        await routes(registry, {mine: main.name})
        left = tmp_path / "plugins" / "choosy" / "left"
        left.touch()
        checked = await ada.stub.CheckConnection(pb.CheckConnectionRequest(name=main.name))
        [finding] = [one for one in checked.findings if one.subject == f"account {mine}"]
        assert (finding.ok, finding.failure.reason) == (False, "ACCOUNT_NOT_PROVEN")
        assert f"tieline app approve {main.name}" in finding.advice
        assert claims(await ada.get()) == {mine: CLAIMED}
        await routes(registry, {})
        assert await ada.titles() == ["|hello:"]
        left.unlink()
        # Nobody has to ask: its hour is over.
        await registry.sql("update registry.connections set prove_after = now()")
        await routes(registry, {mine: main.name})
        assert claims(await ada.get()) == {mine: PROVEN}
        [row] = await registry.sql(
            "select prove_after > now() + interval '50 minutes' as later from registry.connections"
        )
        assert row["later"]
