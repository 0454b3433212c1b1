"""Consent and refresh against a real OAuth server, one that rotates refresh tokens and one that does not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import msgspec
import pytest
from starlette.routing import Route

from foundation.errors import Code, Problem
from foundation.process.ports import Port
from foundation.process.testing import until
from foundation.settings import Address, Secret
from foundation.telemetry.http import application, serve_http
from gateway.oauth import COOKIE, Oauth
from services.credentials.renewal.asking import Made
from services.credentials.renewal.claims import CONSENT, Claim, Want
from services.credentials.renewal.port import Advice
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, started
from tests.services.credentials.oauth_kit import Canaille, Replica, Tap, browse, canaille, replica, value
from tests.services.credentials.test_service import make_tenant, refusal
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1.credentials_pb2 import (
    CreateCredentialRequest,
    Credential,
    GetCredentialRequest,
    RotateCredentialRequest,
    ValidateCredentialRequest,
)
from tieline.credentials.v1.oauth_pb2 import (
    CompleteAuthorizationRequest,
    OpenAuthorizationRequest,
    StartAuthorizationRequest,
)

NAME = "tenants/acme/credentials/oauth"
REFUSAL = Failure(kind=FAILURE_KIND_AUTH_FAILED)


@pytest.fixture(scope="module")
def edge() -> Iterator[Port]:
    """Where the gateway's pages are served; the provider knows it from its start."""
    with Port() as port:
        yield port


@pytest.fixture(scope="module")
def rotating(edge: Port) -> Iterator[Canaille]:
    with canaille(f"http://{edge.host}:{edge.number}/oauth/callback", "rotating") as provider:
        yield provider


@pytest.fixture(scope="module")
def keeping(edge: Port) -> Iterator[Canaille]:
    with canaille(f"http://{edge.host}:{edge.number}/oauth/callback", "keeping") as provider:
        yield provider


@dataclass
class World:
    """The service, the gateway's pages before it, and the wire to the provider."""

    running: Running
    settings: CredentialsSettings
    admin: Client
    gateway: Client
    provider: Canaille
    tap: Tap

    async def start(self, return_path: str = "") -> str:
        request = StartAuthorizationRequest(credential=NAME, return_path=return_path)
        return (await self.admin.oauth.StartAuthorization(request)).authorization_url

    async def connect(self) -> None:
        """From nothing to tokens, through a browser."""
        page, _ = await browse(await self.start(), until="/oauth/callback")
        assert page.status_code == 200, page.text

    async def state(self) -> str:
        row = await self.admin.credentials.GetCredential(GetCredentialRequest(name=NAME))
        return Credential.State.Name(row.state).removeprefix("STATE_")

    async def expire(self) -> None:
        await self.running.sql("update credentials.credential_versions set expires_at = now()")


async def open_world(
    settings: tuple[CredentialsSettings, str], edge: Port, provider: Canaille, stack: AsyncExitStack
) -> World:
    public = f"http://{edge.host}:{edge.number}"
    own = msgspec.structs.replace(settings[0], public_url=public, allow_http_providers=True)
    tap = await stack.enter_async_context(Tap(provider.url))
    running = await stack.enter_async_context(started(own, settings[1]))
    admin, gateway = await running.as_("tl_admin"), await running.as_("tl_gateway")
    pages = Oauth(gateway.oauth, public)
    app = application([Route("/oauth/start", pages.start), Route("/oauth/callback", pages.callback)])
    await stack.enter_async_context(serve_http(app, Address(edge.host, edge.number), 1))
    await make_tenant(admin)
    await admin.credentials.CreateCredential(
        CreateCredentialRequest(parent="tenants/acme", credential_id="oauth", value=value(provider, tap))
    )
    return World(running, own, admin, gateway, provider, tap)


@pytest.fixture
async def world(
    settings: tuple[CredentialsSettings, str], edge: Port, rotating: Canaille
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(settings, edge, rotating, stack)


@pytest.fixture
async def keeping_world(
    settings: tuple[CredentialsSettings, str], edge: Port, keeping: Canaille
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(settings, edge, keeping, stack)


@pytest.fixture
async def one(world: World) -> AsyncIterator[Replica]:
    async with replica(world.settings) as one:
        yield one


# consent


async def test_a_person_consents_in_a_browser_and_the_tokens_are_there(world: World, one: Replica) -> None:
    page, seen = await browse(await world.start("/connections?new=1"), until="/connections")
    assert page.url.path == "/connections", seen
    assert await world.state() == "VALID"
    stored = await one.value()
    assert stored.access_token
    assert stored.refresh_token
    [asked] = world.tap.grants("authorization_code")
    assert asked["redirect_uri"] == world.provider.redirect_uri
    assert len(asked["code_verifier"]) >= 43
    consent = next(url for url in seen if "/oauth/authorize" in url)
    query = parse_qs(urlsplit(consent).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["code_challenge"] != [asked["code_verifier"]]
    assert query["scope"] == ["openid profile"]
    kept = str([dict(row) for row in await world.running.sql("select * from credentials.consents")])
    for secret in (asked["code_verifier"], query["state"][0]):
        assert secret not in kept
    audited = await world.running.sql(
        "select principal, on_behalf_of from credentials.audit_records where action = 'credential.authorise'"
    )
    assert [tuple(row) for row in audited] == [("services/gateway", "users/admin")]


async def test_who_declines_leaves_nothing_behind(world: World) -> None:
    page, _ = await browse(await world.start(), answer="deny", until="/oauth/callback")
    assert page.status_code == 400
    assert "acme" not in page.text
    assert world.tap.asked == []
    assert await world.state() == "UNCHECKED"


async def test_state_ticket_and_browser_are_good_once_and_together(world: World) -> None:
    url = await world.start()
    ticket = parse_qs(urlsplit(url).query)["ticket"][0]
    opened = await world.gateway.oauth.OpenAuthorization(OpenAuthorizationRequest(ticket=ticket))
    again = world.gateway.oauth.OpenAuthorization(OpenAuthorizationRequest(ticket=ticket))
    assert await refusal(again) is Code.INVALID_ARGUMENT
    state = parse_qs(urlsplit(opened.authorization_url).query)["state"][0]

    async def complete(**changed: str) -> Code:
        fields = {"state": state, "code": "c", "browser_binding": opened.browser_binding} | changed
        return await refusal(
            world.gateway.oauth.CompleteAuthorization(CompleteAuthorizationRequest(**fields))
        )

    for foreign in (
        {"state": "unknown"},
        {"state": ""},
        {"browser_binding": "another"},
        {"browser_binding": ""},
    ):
        assert await complete(**foreign) is Code.INVALID_ARGUMENT
    assert world.tap.asked == []
    # It is still the right browser's; a wrong code is the provider's to refuse, and uses the state up.
    assert await complete() is Code.CREDENTIAL_UNUSABLE
    assert len(world.tap.grants("authorization_code")) == 1
    assert await complete() is Code.INVALID_ARGUMENT
    assert len(world.tap.grants("authorization_code")) == 1
    assert await world.state() == "UNCHECKED"

    late = parse_qs(urlsplit(await world.start()).query)["ticket"][0]
    await world.running.sql("update credentials.consents set expires_at = now()")
    assert (
        await refusal(world.gateway.oauth.OpenAuthorization(OpenAuthorizationRequest(ticket=late)))
        is Code.INVALID_ARGUMENT
    )


async def test_the_cookie_is_this_sites_and_scripts_do_not_see_it(world: World) -> None:
    async with httpx.AsyncClient(timeout=60) as browser:
        page = await browser.get(await world.start())
        cookie = page.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert {"HttpOnly", "SameSite=lax", "Path=/oauth"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        refused = await browser.get(f"{world.settings.public_url}/oauth/callback?state=x&code=y&state=z")
        assert (refused.status_code, refused.headers["cache-control"]) == (400, "no-store")


async def test_a_browser_ends_on_our_own_site_only(world: World) -> None:
    for path in ("//e.example", "https://e.example", "/\\e.example", "x", "/a\nb", "/ b", "/" + "a" * 5000):
        assert await refusal(world.start(path)) is Code.INVALID_ARGUMENT, path


# refreshing


async def test_a_provider_that_rotates_gets_each_refresh_token_once(world: World, one: Replica) -> None:
    await world.connect()
    before = await one.value()
    for _ in range(2):
        await world.expire()
        await one.renewals.usable(await one.row(), "")
    after = await one.value()
    sent = [form["refresh_token"] for form in world.tap.grants("refresh_token")]
    assert sent[0] == before.refresh_token
    assert len(set(sent)) == 2
    assert after.refresh_token not in sent
    assert after.access_token != before.access_token
    assert await world.state() == "VALID"


async def test_a_provider_that_does_not_rotate_keeps_its_refresh_token(keeping_world: World) -> None:
    world = keeping_world
    await world.connect()
    async with replica(world.settings) as one:
        before = await one.value()
        await world.expire()
        await one.renewals.usable(await one.row(), "")
        after = await one.value()
    assert after.refresh_token == before.refresh_token
    assert after.access_token != before.access_token


async def test_two_hundred_callers_of_two_replicas_cause_one_request(world: World, one: Replica) -> None:
    await world.connect()
    await world.expire()
    async with replica(world.settings) as two:
        row = await one.row()
        calls = [each.renewals.usable(row, "") for _ in range(100) for each in (one, two)]
        versions = await asyncio.gather(*calls)
    assert len({version.version for version in versions}) == 1
    assert len(world.tap.grants("refresh_token")) == 1


async def test_many_reports_of_one_refusal_cause_one_refresh(world: World, one: Replica) -> None:
    await world.connect()
    row = await one.row()
    async with replica(world.settings) as two:
        reports = [
            each.renewals.refused(row, row.current_version, REFUSAL) for _ in range(20) for each in (one, two)
        ]
        answers = await asyncio.gather(*reports)
    assert {answer.advice for answer in answers} == {Advice.REACQUIRE}
    assert len(world.tap.grants("refresh_token")) == 1
    stale = await one.renewals.refused(await one.row(), row.current_version, REFUSAL)
    assert stale.advice is Advice.REACQUIRE
    assert len(world.tap.grants("refresh_token")) == 1


async def test_a_consent_that_ended_is_asked_for_once(world: World, one: Replica) -> None:
    await world.connect()
    await world.expire()
    # Somebody uses the refresh token elsewhere, so it is dead for us.
    stolen = await one.value()
    async with httpx.AsyncClient(timeout=60) as elsewhere:
        used = await elsewhere.post(
            f"{world.provider.url}/oauth/token",
            data={"grant_type": "refresh_token", "refresh_token": stolen.refresh_token},
            auth=(stolen.client_id, stolen.client_secret),
        )
    assert used.status_code == 200
    for _ in range(5):
        with pytest.raises(Problem) as refused:
            await one.renewals.usable(await one.row(), "")
        assert refused.value.code is Code.CREDENTIAL_UNUSABLE
    assert (await one.renewals.refused(await one.row(), 0, REFUSAL)).advice is Advice.GIVE_UP
    assert await world.state() == "REAUTHORISATION_REQUIRED"
    assert len(world.tap.grants("refresh_token")) == 1
    notices = await world.running.sql("select * from credentials.notices")
    assert len(notices) == 1
    await world.connect()
    assert await world.state() == "VALID"


async def test_without_a_consent_nobody_is_asked(world: World, one: Replica) -> None:
    with pytest.raises(Problem) as refused:
        await one.renewals.usable(await one.row(), "")
    assert refused.value.code is Code.CREDENTIAL_UNUSABLE
    assert world.tap.asked == []
    assert await world.state() == "REAUTHORISATION_REQUIRED"


async def test_trying_it_refreshes_it_and_tells_its_scopes(world: World) -> None:
    await world.connect()
    found = await world.admin.credentials.ValidateCredential(ValidateCredentialRequest(name=NAME))
    assert list(found.granted_scopes) == ["openid", "profile"]
    assert list(found.missing_scopes) == []
    assert len(world.tap.grants("refresh_token")) == 1


async def test_a_lost_answer_is_in_doubt_and_then_found_out(keeping_world: World) -> None:
    world = keeping_world
    await world.connect()
    lost = 0

    async def lose_once() -> bool:
        nonlocal lost
        lost += 1
        return lost > 1

    async with replica(world.settings) as one:
        await world.expire()
        world.tap.before_answer = lose_once
        with pytest.raises(Problem) as refused:
            await one.renewals.usable(await one.row(), "")
        assert refused.value.code is Code.CREDENTIAL_REFRESHING
    # Nobody asks any more; the service finds it and carries on.
    await until(lambda: _is(world, "VALID"), within=30)
    assert len(world.tap.grants("refresh_token")) == 2


# what a crash leaves


async def abandoned(world: World) -> None:
    """The claim's time is over, and somebody has found that out."""
    await world.running.sql("update credentials.refreshes set claimed_until = now()")
    await until(lambda: _nobody_asks(world), within=30)


async def _nobody_asks(world: World) -> bool:
    [row] = await world.running.sql("select asking from credentials.refreshes")
    return not row["asking"]


@pytest.mark.parametrize("done", [1, 2, 3], ids=["claimed", "answered", "stored"])
async def test_whoever_is_cut_off_after_a_step_leaves_no_silence(
    world: World, one: Replica, done: int
) -> None:
    await world.connect()
    await world.expire()
    claim = await one.claims.take(Want("acme", "oauth"))
    assert isinstance(claim, Claim)
    made: Made | None = None
    if done > 1:
        made = await one.renewals._ways.renewing[CONSENT].renew(claim.asked)
        if done > 2:
            assert await one.claims.keep(claim, made)
    await abandoned(world)
    # Only where the provider has rotated the token and nobody has the new one must a person act.
    assert await world.state() == ("REAUTHORISATION_REQUIRED" if done == 2 else "VALID")
    doubts = await world.running.sql(
        "select 1 from credentials.audit_records where details->>'reason' = 'unknown'"
    )
    assert len(doubts) == (0 if done == 3 else 1)
    late = made or Made(b"")
    assert await one.claims.keep(claim, late) is None, "a claim that is over stores nothing"


@pytest.mark.proof
@pytest.mark.parametrize("manner", ["rotating", "keeping"])
async def test_a_winner_killed_between_answer_and_commit_leaves_no_silence(
    settings: tuple[CredentialsSettings, str],
    edge: Port,
    request: pytest.FixtureRequest,
    manner: str,
    tmp_path: Path,
) -> None:
    provider: Canaille = request.getfixturevalue(manner)
    async with AsyncExitStack() as stack:
        world = await open_world(settings, edge, provider, stack)
        await world.connect()
        holder = await asyncpg.connect(world.running.admin_url)
        stack.push_async_callback(holder.close)
        delivered = asyncio.Event()

        async def before_the_answer() -> bool:
            if not delivered.is_set():
                # The answer will reach the process, and the transaction that would store it waits for us.
                await holder.execute("begin")
                await holder.execute("select from credentials.credentials for update")
                delivered.set()
            return True

        world.tap.before_answer = before_the_answer
        async with victim(world, tmp_path) as (process, client):
            asking = asyncio.create_task(rotate(client))
            async with asyncio.timeout(30):
                await delivered.wait()
            await until(lambda: _someone_waits_for_the_row(world), within=30)
            process.kill()
            await process.wait()
            with pytest.raises(Problem):
                await asking
        await holder.execute("rollback")
        assert len(world.tap.grants("refresh_token")) == 1
        assert not await _nobody_asks(world)
        await abandoned(world)
        assert len(world.tap.grants("refresh_token")) == 2
        assert await world.state() == ("REAUTHORISATION_REQUIRED" if manner == "rotating" else "VALID")
        await world.connect()
        assert await world.state() == "VALID"


async def rotate(client: Client) -> None:
    await client.credentials.RotateCredential(RotateCredentialRequest(name=NAME), timeout=60)


async def _someone_waits_for_the_row(world: World) -> bool:
    return bool(
        await world.running.sql(
            """select 1 from pg_stat_activity
               where wait_event_type = 'Lock' and datname = current_database()
                 and application_name = 'tieline-credentials'"""
        )
    )


@asynccontextmanager
async def victim(world: World, directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    """The service once more, as a process of its own."""
    with Port() as grpc, Port() as http:
        told = {name: getattr(world.settings, name) for name in world.settings.__struct_fields__}
        told |= {"listen": grpc.address, "http": http.address}
        shown = {
            name: given.reveal() if isinstance(given, Secret) else given
            for name, given in told.items()
            if given not in (None, ())
        }
        file = directory / "credentials.toml"
        file.write_text(
            "[credentials]\n" + "".join(f"{name} = {json.dumps(it)}\n" for name, it in shown.items())
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.credentials", "--config", str(file)
        )
        try:
            elsewhere = replace(world.running, address=grpc.address, clients={})
            await until(lambda: _answers(elsewhere), within=60)
            yield process, await elsewhere.as_("tl_admin")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _answers(running: Running) -> bool:
    client = await running.as_("tl_admin")
    try:
        await client.credentials.GetCredential(GetCredentialRequest(name=NAME))
    except Problem:
        return False
    return True


async def _is(world: World, state: str) -> bool:
    return await world.state() == state
