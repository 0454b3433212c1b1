"""Sessions: what the vault makes of GitHub Apps, roles and clients, each against a server that checks it.

GitHub itself cannot be reached from a test. The server here checks what GitHub documents: the JWT's signature
with the app's public key, its issuer and its times.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from foundation.errors import Code, Problem
from foundation.process.ports import Port
from foundation.settings import Address
from foundation.telemetry.http import serve_http
from services.credentials.credential.kinds import read_session
from services.credentials.credential.store import VersionRow
from services.credentials.renewal.port import Advice
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.aws import Aws
from tests.services.credentials.conftest import Client, Running, started
from tests.services.credentials.oauth_kit import Replica, replica
from tests.services.credentials.test_service import make_tenant
from tests.services.credentials.values import pem, rsa_key
from tieline.common.v1.failure_pb2 import FAILURE_KIND_AUTH_FAILED, Failure
from tieline.credentials.v1.credentials_pb2 import CreateCredentialRequest
from tieline.credentials.v1.secrets_pb2 import (
    AwsKeys,
    AwsRole,
    GithubApp,
    Oauth2ClientCredentials,
    SecretValue,
    ServiceAccount,
)

REFUSAL = Failure(kind=FAILURE_KIND_AUTH_FAILED)


@dataclass
class Provider:
    """GitHub's two calls, and a token endpoint that answers as it is told."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: int = 0
    forms: list[dict[str, str]] = field(default_factory=list)
    proofs: list[str] = field(default_factory=list)
    answer: Callable[[], Response] | None = None
    life: timedelta = timedelta(hours=1)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/app", self.who, methods=["GET"]),
                Route("/app/installations/{id}/access_tokens", self.give, methods=["POST"]),
                Route("/token", self.token, methods=["POST"]),
            ]
        )

    def refused(self, request: Request) -> Response | None:
        scheme, _, token = request.headers["authorization"].partition(" ")
        assert scheme == "Bearer"
        try:
            claims = jwt.decode(token, RSAKey.import_key(pem(rsa_key())), algorithms=["RS256"]).claims
        except Exception:  # noqa: BLE001 - whatever is wrong with it, GitHub says the same
            return JSONResponse({"message": "A JSON web token could not be decoded"}, status_code=401)
        now = datetime.now(UTC).timestamp()
        fits = claims["iss"] == "4711" and claims["iat"] <= now < claims["exp"] <= now + 600
        return None if fits else JSONResponse({"message": "bad claims"}, status_code=401)

    async def who(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"id": 4711, "slug": "tieline-of-acme"})

    async def give(self, request: Request) -> Response:
        installation = request.path_params["id"]
        self.asked.append(installation)
        if (refused := self.refused(request)) is not None:
            return refused
        if installation == "404":
            return JSONResponse({"message": "Not Found"}, status_code=404)
        self.tokens += 1
        ends = datetime.now(UTC) + self.life
        token = {"token": f"ghs_{installation}_{self.tokens}", "expires_at": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        return JSONResponse(token, status_code=201)

    async def token(self, request: Request) -> Response:
        body = parse_qs((await request.body()).decode())
        self.forms.append({name: texts[0] for name, texts in body.items()})
        self.proofs.append(request.headers.get("authorization", ""))
        if self.answer is not None:
            return self.answer()
        self.tokens += 1
        return JSONResponse({"access_token": f"at-{self.tokens}", "token_type": "bearer", "expires_in": 600})


@dataclass
class World:
    running: Running
    settings: CredentialsSettings
    admin: Client
    provider: Provider
    one: Replica
    aws: Aws

    async def put(self, name: str, value: SecretValue) -> None:
        request = CreateCredentialRequest(parent="tenants/acme", credential_id=name, value=value)
        await self.admin.credentials.CreateCredential(request)

    async def usable(self, name: str, account: str = "") -> VersionRow:
        return await self.one.renewals.usable(await self.one.row(name), account)

    async def fields(self, name: str, account: str = "") -> dict[str, str]:
        version = await self.usable(name, account)
        assert version.sealed_value is not None
        assert version.made_from is not None
        async with self.one.store.unit_of_work(tenants=["acme"]) as work:
            plain = await self.one.vault.open(
                work, version.holding, version.sealed_value, version.key_version
            )
        return {name: text.decode() for name, text in read_session(plain).items()}

    async def refusal(self, name: str, account: str = "") -> Problem:
        with pytest.raises(Problem) as refused:
            await self.usable(name, account)
        return refused.value


@pytest.fixture
async def world(settings: tuple[CredentialsSettings, str]) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        aws = Aws(stack.enter_context(Port()))
        stack.push_async_callback(aws.stop)
        own = msgspec.structs.replace(settings[0], allow_http_providers=True, aws_endpoint_url=aws.url)
        provider = Provider()
        address = await stack.enter_async_context(serve_http(provider.app(), Address("127.0.0.1", 0), 1))
        provider.url = f"http://{address}"
        running = await stack.enter_async_context(started(own, settings[1]))
        one = await stack.enter_async_context(replica(own))
        admin = await running.as_("tl_admin")
        await make_tenant(admin)
        yield World(running, own, admin, provider, one, aws)


def app(provider: Provider, **changed: Any) -> SecretValue:
    fields = {"app_id": "4711", "private_key": pem(rsa_key()), "api_url": provider.url} | changed
    return SecretValue(github_app=GithubApp(**fields))


def client(provider: Provider, **changed: Any) -> SecretValue:
    fields = {
        "client_id": "tieline",
        "client_secret": "a secret: with /%+",
        "token_url": f"{provider.url}/token",
    } | changed
    return SecretValue(oauth2_client_credentials=Oauth2ClientCredentials(**fields))


async def test_each_installation_of_an_app_has_its_own_token_until_it_nears_its_end(world: World) -> None:
    await world.put("app", app(world.provider, installation_id="42"))
    assert await world.fields("app") == {"token": "ghs_42_1"}
    calls = [world.fields("app", account) for account in ("42", "43") * 20]
    answers = await asyncio.gather(*calls)
    assert len({answer["token"] for answer in answers}) == 2
    assert sorted(world.provider.asked) == ["42", "42", "43"]
    world.provider.life = timedelta(seconds=2)
    await world.running.sql(
        "update credentials.credential_versions set expires_at = now() where account = '43'"
    )
    assert (await world.fields("app", "43"))["token"] == "ghs_43_4"
    found = await world.one.renewals.validate(await world.one.row("app"))
    assert found is not None
    assert found.principal == "app tieline-of-acme"


async def test_an_installation_that_is_gone_harms_no_other(world: World) -> None:
    await world.put("app", app(world.provider))
    refused = await world.refusal("app", "404")
    assert refused.code is Code.CREDENTIAL_UNUSABLE
    assert "installation 404" in refused.sentence
    assert (await world.refusal("app", "not digits/..")).code is Code.CREDENTIAL_UNUSABLE
    assert (await world.refusal("app")).code is Code.CREDENTIAL_UNUSABLE
    assert await world.fields("app", "43") == {"token": "ghs_43_1"}
    assert world.provider.asked == ["404", "43"]
    # Asked again at once it is known; GitHub is not.
    assert (await world.refusal("app", "404")).code is Code.CREDENTIAL_UNUSABLE
    assert world.provider.asked == ["404", "43"]


async def test_a_key_of_another_app_is_refused_for_all(world: World) -> None:
    await world.put("app", app(world.provider, app_id="1234", installation_id="42"))
    refused = await world.refusal("app")
    assert refused.code is Code.CREDENTIAL_UNUSABLE
    assert "signature" in refused.sentence
    assert (await world.one.row("app")).state == "REFUSED"
    with pytest.raises(Problem) as tried:
        await world.one.renewals.validate(await world.one.row("app"))
    assert tried.value.code is Code.CREDENTIAL_UNUSABLE


async def test_a_session_that_was_refused_is_made_anew_once(world: World) -> None:
    await world.put("app", app(world.provider, installation_id="42"))
    version = await world.usable("app", "42")
    row = await world.one.row("app")
    answers = await asyncio.gather(
        *(world.one.renewals.refused(row, version.version, REFUSAL) for _ in range(30))
    )
    assert {answer.advice for answer in answers} == {Advice.REACQUIRE}
    assert world.provider.asked == ["42", "42"]


async def test_a_client_proves_itself_and_says_for_whom(world: World) -> None:
    await world.put("client", client(world.provider, scopes=["a", "b"], audience="https://api.example"))
    assert await world.fields("client") == {"access_token": "at-1"}
    [form] = world.provider.forms
    assert form == {"grant_type": "client_credentials", "scope": "a b", "audience": "https://api.example"}
    assert world.provider.proofs[0].startswith("Basic ")


async def test_a_server_that_knows_only_the_body_gets_the_secret_there(world: World) -> None:
    await world.put("client", client(world.provider))

    def only_the_body() -> Response:
        if world.provider.forms[-1].get("client_secret") == "a secret: with /%+":
            return JSONResponse({"access_token": "at"})
        return JSONResponse({"error": "invalid_client"}, status_code=401)

    world.provider.answer = only_the_body
    assert await world.fields("client") == {"access_token": "at"}
    assert len(world.provider.forms) == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda: PlainTextResponse("access_token=x"), Code.PROVIDER_UNAVAILABLE),
        (lambda: JSONResponse(["x"]), Code.PROVIDER_UNAVAILABLE),
        (lambda: JSONResponse({"access_token": 7}), Code.PROVIDER_UNAVAILABLE),
        (lambda: PlainTextResponse("x" * 300_000), Code.PROVIDER_UNAVAILABLE),
        (lambda: Response(status_code=503, headers={"retry-after": "7"}), Code.PROVIDER_UNAVAILABLE),
        (lambda: Response(status_code=502), Code.PROVIDER_UNAVAILABLE),
        (lambda: RedirectResponse("http://127.0.0.1:1/elsewhere"), Code.CREDENTIAL_UNUSABLE),
        (lambda: Response(status_code=404), Code.CREDENTIAL_UNUSABLE),
        (lambda: JSONResponse({"error": "invalid_scope"}, status_code=400), Code.CREDENTIAL_UNUSABLE),
        (lambda: JSONResponse({"error": "sk-secret"}, status_code=400), Code.CREDENTIAL_UNUSABLE),
    ],
    ids=["text", "list", "number", "huge", "busy", "proxy", "redirect", "missing", "scope", "foreign"],
)
async def test_what_is_no_token_makes_no_session(
    world: World, answer: Callable[[], Response], code: Code
) -> None:
    await world.put("client", client(world.provider))
    world.provider.answer = answer
    refused = await world.refusal("client")
    assert refused.code is code
    assert "sk-secret" not in refused.text
    assert len(world.provider.forms) == 1
    await world.refusal("client")
    assert len(world.provider.forms) == 1, "a provider in trouble is not asked again at once"
    assert (await world.one.row("client")).state == (
        "REFUSED" if code is Code.CREDENTIAL_UNUSABLE else "UNCHECKED"
    )


async def test_a_service_account_signs_for_its_tokens(world: World) -> None:
    document = {
        "client_email": "robot@project.example",
        "private_key": pem(rsa_key()),
        "private_key_id": "k-1",
        "token_uri": f"{world.provider.url}/token",
    }
    account = ServiceAccount(document=json.dumps(document).encode(), scopes=["read", "write"])
    await world.put("robot", SecretValue(service_account=account))
    assert await world.fields("robot") == {"token": "at-1"}
    [form] = world.provider.forms
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    decoded = jwt.decode(form["assertion"], RSAKey.import_key(pem(rsa_key())), algorithms=["RS256"])
    assert decoded.header["kid"] == "k-1"
    assert decoded.claims["scope"] == "read write"
    assert decoded.claims["aud"] == document["token_uri"]


async def test_a_role_is_assumed_and_its_holders_get_the_session(world: World) -> None:
    base = AwsKeys(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG")
    role = AwsRole(
        role_arn="arn:aws:iam::123456789012:role/tieline", external_id="agreed", region="eu-west-1", base=base
    )
    await world.put("role", SecretValue(aws_role=role))
    assert (await world.refusal("role")).code is Code.PROVIDER_UNAVAILABLE
    await world.running.sql("update credentials.refreshes set not_before = null")
    await world.aws.start()
    fields = await world.fields("role")
    assert set(fields) == {"access_key_id", "secret_access_key", "session_token"}
    assert fields["access_key_id"].startswith("ASIA")
    assert await world.fields("role") == fields
    found = await world.one.renewals.validate(await world.one.row("role"))
    assert found is not None
    assert found.principal == "arn:aws:sts::123456789012:assumed-role/tieline/tieline-acme-role"


async def test_keys_are_tried_by_asking_who_they_are(world: World) -> None:
    keys = AwsKeys(access_key_id="AKIAIOSFODNN7EXAMPLE", secret_access_key="wJalrXUtnFEMI/K7MDENG")
    await world.put("keys", SecretValue(aws_keys=keys))
    await world.aws.start()
    found = await world.one.renewals.validate(await world.one.row("keys"))
    assert found is not None
    assert found.principal.startswith("arn:aws:")


async def test_without_leave_no_provider_is_looked_for_inside(world: World) -> None:
    await world.put("client", client(world.provider))
    closed = msgspec.structs.replace(world.settings, allow_http_providers=False)
    async with replica(closed) as careful:
        with pytest.raises(Problem) as refused:
            await careful.renewals.usable(await careful.row("client"), "")
    assert refused.value.code is Code.CREDENTIAL_UNUSABLE
    assert world.provider.forms == []
