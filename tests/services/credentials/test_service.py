from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from foundation.errors import Code, Problem
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, started
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INTERNAL, FAILURE_KIND_PERMISSION_DENIED
from tieline.common.v1.options_pb2 import ROLE_PLATFORM_ADMIN, ROLE_SERVICE, ROLE_VIEWER
from tieline.credentials.v1.credentials_pb2 import (
    PURPOSE_CALL,
    PURPOSE_WEBHOOK_VERIFY,
    CreateCredentialRequest,
    CreateGrantRequest,
    GetCredentialRequest,
    Grant,
    ListCredentialsRequest,
)
from tieline.credentials.v1.leases_pb2 import AcquireLeasesRequest, AcquireLeasesResponse
from tieline.credentials.v1.secrets_pb2 import ApiKey, Basic, SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import (
    CreateTenantRequest,
    GetTenantRequest,
    ListTenantsRequest,
    Tenant,
)
from tieline.credentials.v1.tokens_pb2 import (
    ApiToken,
    CreateApiTokenRequest,
    ExchangeTokenRequest,
    ListApiTokensRequest,
    RevokeApiTokenRequest,
)

SECRET = "a webhook secret of acme"
CONNECTION = "tenants/acme/connections/main"


async def make_tenant(admin: Client, tenant: str = "acme") -> None:
    await admin.tenants.CreateTenant(CreateTenantRequest(tenant_id=tenant))


async def make_credential(
    admin: Client, tenant: str = "acme", credential: str = "hook", secret: str = SECRET
) -> None:
    await admin.credentials.CreateCredential(
        CreateCredentialRequest(
            parent=f"tenants/{tenant}",
            credential_id=credential,
            value=SecretValue(webhook_secret=WebhookSecret(secret=secret)),
        )
    )


async def make_grant(admin: Client, **changed: Any) -> Grant:
    grant = Grant(service="gateway", connection=CONNECTION, slot="webhook", purpose=PURPOSE_WEBHOOK_VERIFY)
    for name, value in changed.items():
        setattr(grant, name, value)
    return await admin.credentials.CreateGrant(
        CreateGrantRequest(parent="tenants/acme/credentials/hook", grant=grant)
    )


async def lease(client: Client, **changed: Any) -> AcquireLeasesResponse.LeaseOutcome:
    wanted: dict[str, Any] = {
        "subject": CONNECTION,
        "slot": "webhook",
        "purpose": PURPOSE_WEBHOOK_VERIFY,
    } | changed
    answer = await client.leases.AcquireLeases(
        AcquireLeasesRequest(requests=[AcquireLeasesRequest.LeaseRequest(**wanted)]), timeout=60.0
    )
    [outcome] = answer.outcomes
    return outcome


async def refusal(call: Any) -> Code:
    """`call` is anything to await: a stub's call, which type checkers see as its answer, or a coroutine."""
    with pytest.raises(Problem) as refused:
        await call
    return refused.value.code


async def test_tenants_are_made_once_and_listed_in_pages(admin: Client) -> None:
    for tenant in ("t2", "t1", "t3"):
        await make_tenant(admin, tenant)
    first = await admin.tenants.ListTenants(ListTenantsRequest(page_size=2))
    second = await admin.tenants.ListTenants(
        ListTenantsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [one.name for one in (*first.tenants, *second.tenants)] == [
        "tenants/t1",
        "tenants/t2",
        "tenants/t3",
    ]
    assert second.next_page_token == ""
    assert (
        await refusal(admin.tenants.ListTenants(ListTenantsRequest(page_token="?"))) is Code.INVALID_ARGUMENT
    )
    assert (await admin.tenants.GetTenant(GetTenantRequest(name="tenants/t1"))).state == Tenant.STATE_ACTIVE
    assert await refusal(make_tenant(admin, "t1")) is Code.ALREADY_EXISTS
    for bad in ("A b", "a", "a-", "a" * 41):
        assert await refusal(make_tenant(admin, bad)) is Code.INVALID_ARGUMENT
    assert await refusal(admin.tenants.GetTenant(GetTenantRequest(name="tenants/t9"))) is Code.NOT_FOUND


async def test_the_same_request_again_is_answered_the_same(admin: Client) -> None:
    request = CreateTenantRequest(tenant_id="acme", request_id="r-1")
    first = await admin.tenants.CreateTenant(request)
    assert await admin.tenants.CreateTenant(request) == first


async def test_a_token_of_a_tenant_does_what_its_role_may_and_nothing_elsewhere(
    running: Running, admin: Client
) -> None:
    for tenant in ("acme", "other"):
        await make_tenant(admin, tenant)
    made = await admin.tokens.CreateApiToken(
        CreateApiTokenRequest(parent="tenants/acme", api_token=ApiToken(title="mine", roles=[ROLE_VIEWER]))
    )
    assert made.secret.startswith("tl_")
    viewer = await running.as_(made.secret)
    assert (await viewer.tenants.GetTenant(GetTenantRequest(name="tenants/acme"))).name == "tenants/acme"
    other = viewer.tenants.GetTenant(GetTenantRequest(name="tenants/other"))
    assert await refusal(other) is Code.TENANT_FOREIGN
    assert await refusal(make_tenant(viewer, "mine")) is Code.ROLE_MISSING
    assert await refusal(make_credential(viewer)) is Code.ROLE_MISSING
    assert await refusal(lease(viewer)) is Code.CALLER_KIND_REFUSED

    [kept] = await running.sql("select * from credentials.api_tokens where owner = 'tenants/acme'")
    assert made.secret not in str(dict(kept))
    listed = await admin.tokens.ListApiTokens(ListApiTokensRequest(parent="tenants/acme"))
    assert [token.title for token in listed.api_tokens] == ["mine"]
    assert listed.api_tokens[0].HasField("last_used_time")


@pytest.mark.parametrize(
    "roles", [[], [ROLE_PLATFORM_ADMIN], [ROLE_SERVICE], [ROLE_VIEWER, ROLE_SERVICE], [ROLE_VIEWER, 99]]
)
async def test_no_token_of_a_tenant_carries_a_role_of_the_platform(admin: Client, roles: list[Any]) -> None:
    await make_tenant(admin)
    request = CreateApiTokenRequest(parent="tenants/acme", api_token=ApiToken(roles=roles))
    assert await refusal(admin.tokens.CreateApiToken(request)) is Code.INVALID_ARGUMENT


async def test_a_token_ends(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    wanted = ApiToken(roles=[ROLE_VIEWER])
    made = await admin.tokens.CreateApiToken(CreateApiTokenRequest(parent="tenants/acme", api_token=wanted))
    nobody = await running.as_(None)
    exchange = ExchangeTokenRequest(api_token=made.secret)
    await nobody.tokens.ExchangeToken(exchange)

    await running.sql("update credentials.tenants set state = 'SUSPENDED'")
    assert await refusal(nobody.tokens.ExchangeToken(exchange)) is Code.TOKEN_INVALID
    await running.sql("update credentials.tenants set state = 'ACTIVE'")
    await running.sql("update credentials.api_tokens set expires_at = now() where owner = 'tenants/acme'")
    assert await refusal(nobody.tokens.ExchangeToken(exchange)) is Code.TOKEN_INVALID
    await running.sql("update credentials.api_tokens set expires_at = null where owner = 'tenants/acme'")
    await nobody.tokens.ExchangeToken(exchange)
    await admin.tokens.RevokeApiToken(RevokeApiTokenRequest(name=made.api_token.name))
    assert await refusal(nobody.tokens.ExchangeToken(exchange)) is Code.TOKEN_INVALID

    wanted.expire_time.FromDatetime(datetime.now(UTC) - timedelta(seconds=1))
    late = CreateApiTokenRequest(parent="tenants/acme", api_token=wanted)
    assert await refusal(admin.tokens.CreateApiToken(late)) is Code.INVALID_ARGUMENT


async def test_what_is_no_time_ends_nothing(admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    never = Timestamp(seconds=2**62)
    token = CreateApiTokenRequest(
        parent="tenants/acme", api_token=ApiToken(roles=[ROLE_VIEWER], expire_time=never)
    )
    assert await refusal(admin.tokens.CreateApiToken(token)) is Code.INVALID_ARGUMENT
    grant = Grant(service="gateway", connection=CONNECTION, purpose=PURPOSE_WEBHOOK_VERIFY, expire_time=never)
    request = CreateGrantRequest(parent="tenants/acme/credentials/hook", grant=grant)
    assert await refusal(admin.credentials.CreateGrant(request)) is Code.INVALID_ARGUMENT


async def test_what_is_no_token_is_not_exchanged(running: Running) -> None:
    nobody = await running.as_(None)
    for token in ("", "tl_", "tl_admin ", "x" * 10_000, "\0"):
        asked = nobody.tokens.ExchangeToken(ExchangeTokenRequest(api_token=token))
        assert await refusal(asked) is Code.TOKEN_INVALID


async def test_a_secret_reaches_whom_a_grant_names_and_nobody_else(
    running: Running, admin: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    await make_grant(admin)
    outcome = await lease(gateway)
    assert outcome.secret.fields["secret"] == SECRET.encode()
    assert outcome.secret.lease.holder == "services/gateway"
    assert (await lease(gateway)).secret.lease.name == outcome.secret.lease.name

    mapper = await running.as_("tl_mapper")
    for changed in (
        {"client": mapper},
        {"subject": "tenants/acme/connections/other"},
        {"subject": "tenants/other/connections/main"},
        {"slot": "api"},
        {"entry": "second"},
        {"purpose": PURPOSE_CALL},
        {"subject": "nonsense"},
    ):
        fields = dict(changed)
        client: Any = fields.pop("client", gateway)
        denied = await lease(client, **fields)
        assert denied.WhichOneof("outcome") == "failure", changed
        assert not denied.secret.fields


async def test_a_grant_ends(running: Running, admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    await running.sql("update credentials.grants set expires_at = now() - interval '1 second'")
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED


async def test_the_same_grant_again_is_the_same(admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    assert (await make_grant(admin)).name == (await make_grant(admin)).name


async def test_grants_that_make_no_sense_are_refused(admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    for changed in (
        {"service": ""},
        {"connection": "tenants/other/connections/main"},
        {"connection": ""},
        {"connection": "tenants/acme"},
        {"connection": "tenants/acme/connections/a\0b"},
        {"account": "a\0b"},
        {"account": "a" * 300},
        {"purpose": 0},
        {"app": "apps/github"},
    ):
        if changed.get("service") == "":
            request = CreateGrantRequest(parent="tenants/acme/credentials/hook", grant=Grant(slot="webhook"))
            assert await refusal(admin.credentials.CreateGrant(request)) is Code.INVALID_ARGUMENT
        else:
            assert await refusal(make_grant(admin, **changed)) is Code.INVALID_ARGUMENT
    none = CreateGrantRequest(
        parent="tenants/acme/credentials/none",
        grant=Grant(service="gateway", connection=CONNECTION, slot="webhook", purpose=PURPOSE_WEBHOOK_VERIFY),
    )
    assert await refusal(admin.credentials.CreateGrant(none)) is Code.NOT_FOUND


async def test_values_go_in_and_never_come_out(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    value = SecretValue(basic=Basic(username="ada", password=SECRET))
    request = CreateCredentialRequest(parent="tenants/acme", credential_id="login", value=value)
    stored = await admin.credentials.CreateCredential(request)
    assert dict(stored.attributes) == {"username": "ada"}
    page = await admin.credentials.ListCredentials(ListCredentialsRequest(parent="tenants/acme"))
    assert [one.name.rpartition("/")[2] for one in page.credentials] == ["hook", "login"]
    got = await admin.credentials.GetCredential(GetCredentialRequest(name=stored.name))
    assert SECRET not in f"{stored}{page}{got}"
    for table in ("credentials", "credential_versions", "tenant_keys", "signing_keys", "root_canary"):
        rows = await running.sql(f"select * from credentials.{table}")  # noqa: S608
        dump = b"".join(
            item if isinstance(item, bytes) else str(item).encode() for row in rows for item in row.values()
        )
        assert SECRET.encode() not in dump


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (SecretValue(), "value"),
        (SecretValue(api_key=ApiKey()), "value.api_key.key"),
        (SecretValue(basic=Basic(username="ada")), "value.basic.password"),
        (SecretValue(webhook_secret=WebhookSecret(secret="short")), "value.webhook_secret.secret"),
        (SecretValue(api_key=ApiKey(key="x" * 65_537)), "value.api_key.key"),
    ],
)
async def test_a_value_that_cannot_be_is_refused_by_field_and_nothing_is_stored(
    running: Running, admin: Client, value: SecretValue, field: str
) -> None:
    await make_tenant(admin)
    request = CreateCredentialRequest(parent="tenants/acme", credential_id="x", value=value)
    with pytest.raises(Problem) as refused:
        await admin.credentials.CreateCredential(request)
    assert (refused.value.code, refused.value.data["field"]) == (Code.INVALID_ARGUMENT, field)
    assert await running.sql("select * from credentials.credentials") == []


async def test_a_webhook_secret_can_be_left_to_the_vault(admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin, secret="")
    await make_grant(admin)
    assert len((await lease(gateway)).secret.fields["secret"]) == 64


async def test_a_credential_is_made_once(admin: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    assert await refusal(make_credential(admin)) is Code.ALREADY_EXISTS
    assert await refusal(make_credential(admin, tenant="none")) is Code.NOT_FOUND


async def test_rows_that_were_moved_or_changed_do_not_open(
    running: Running, admin: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_credential(admin, credential="second", secret="another secret of acme")
    await make_grant(admin)
    swap = "update credentials.credential_versions v set sealed = o.sealed from credentials.credential_versions o "
    await running.sql(swap + "where v.credential = 'hook' and o.credential = 'second'")
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_INTERNAL


async def test_a_wrong_root_key_is_told_by_its_fingerprint(
    settings: tuple[CredentialsSettings, str],
) -> None:
    async with started(*settings):
        pass
    Path(settings[0].root_key_file or "").unlink()
    with pytest.raises(Problem, match=r"it holds the key \w{16}, this database was sealed with \w{16}"):
        async with started(*settings):
            pass


async def test_everything_survives_a_restart(settings: tuple[CredentialsSettings, str]) -> None:
    async with started(*settings) as first:
        admin = await first.as_("tl_admin")
        await make_tenant(admin)
        await make_credential(admin)
        await make_grant(admin)
    async with started(*settings) as second:
        outcome = await lease(await second.as_("tl_gateway"))
        assert outcome.secret.fields["secret"] == SECRET.encode()
