"""Who gets a secret, who is told of what becomes of it, and what is written down before: through the API."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration

from foundation.errors import Code
from foundation.process.testing import until
from foundation.rpc import check_health, connect
from foundation.rpc.streams import streaming
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, replica, started
from tests.services.credentials.test_book import add_version, secret
from tests.services.credentials.test_service import (
    CONNECTION,
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tieline.common.v1.failure_pb2 import (
    FAILURE_KIND_AUTH_FAILED,
    FAILURE_KIND_INVALID_INPUT,
    FAILURE_KIND_PERMISSION_DENIED,
    FAILURE_KIND_TRANSIENT,
    Failure,
)
from tieline.credentials.v1.audit_pb2 import AuditRecord, ListAuditRecordsRequest
from tieline.credentials.v1.credentials_pb2 import (
    PURPOSE_CALL,
    PURPOSE_DELIVERY_SIGN,
    CreateCredentialRequest,
    CreateGrantRequest,
    Credential,
    DeleteGrantRequest,
    GetCredentialRequest,
    Grant,
    RevokeCredentialRequest,
)
from tieline.credentials.v1.leases_pb2 import (
    AcquireLeasesRequest,
    Lease,
    ListLeasesRequest,
    ReleaseLeasesRequest,
    ReportRefusalRequest,
    ReportRefusalResponse,
    WatchLeasesRequest,
)
from tieline.credentials.v1.secrets_pb2 import ApiKey, Basic, Oauth2ClientCredentials, SecretValue
from tieline.credentials.v1.tenants_pb2 import ResumeTenantRequest, SuspendTenantRequest

HOOK = "tenants/acme/credentials/hook"
NEXT = "the next webhook secret of acme"
KEY = "a key that is a canary"


@pytest.fixture
async def hook(admin: Client) -> Grant:
    await make_tenant(admin)
    await make_credential(admin)
    return await make_grant(admin)


async def for_plugin(
    admin: Client, value: SecretValue | None = None, credential: str = "key", **changed: Any
) -> Grant:
    value = value or SecretValue(api_key=ApiKey(key=KEY))
    await admin.credentials.CreateCredential(
        CreateCredentialRequest(parent="tenants/acme", credential_id=credential, value=value)
    )
    grant = Grant(plugin="github", connection=CONNECTION, slot="api", purpose=PURPOSE_CALL, **changed)
    request = CreateGrantRequest(parent=f"tenants/acme/credentials/{credential}", grant=grant)
    return await admin.credentials.CreateGrant(request)


def plugin(**changed: Any) -> dict[str, Any]:
    wanted = {"slot": "api", "purpose": PURPOSE_CALL, "plugin": "github", "plugin_version": "1.4.0"}
    return wanted | changed


async def records(admin: Client, **wanted: Any) -> list[AuditRecord]:
    answer = await admin.audit.ListAuditRecords(
        ListAuditRecordsRequest(parent="tenants/acme", page_size=1000, **wanted)
    )
    return list(answer.audit_records)


def read_metrics(running: Running) -> str:
    with urllib.request.urlopen(f"http://{running.settings.http}/metrics") as answer:
        text: str = answer.read().decode()
        return text


class Told:
    """What a client's watch has told last."""

    def __init__(self) -> None:
        self.states: dict[str, Lease.State.ValueType] = {}
        self.generations: list[int] = []


@asynccontextmanager
async def watching(client: Client) -> AsyncIterator[Told]:
    told = Told()

    async def listen() -> None:
        async with streaming(client.leases.WatchLeases(WatchLeasesRequest())) as answers:
            async for answer in answers:
                told.states = {one.name: one.state for one in answer.leases}
                told.generations.append(answer.generation)

    task = asyncio.create_task(listen())
    try:
        await until(lambda: told.generations, 30)
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# who gets what


@pytest.mark.usefixtures("hook")
async def test_a_plugin_gets_it_through_its_host_alone(
    admin: Client, registry: Client, gateway: Client
) -> None:
    await for_plugin(admin, plugin_versions=">=1.2,<2")
    given = (await lease(registry, **plugin())).secret
    assert dict(given.fields) == {"key": KEY.encode()}
    assert given.lease.holder == "plugins/github"
    for client, changed in (
        (gateway, {}),
        (registry, {"plugin": "slack"}),
        (registry, {"plugin": ""}),
        (registry, {"plugin_version": "1.1.9"}),
        (registry, {"plugin_version": "2.0.0"}),
        (registry, {"plugin_version": "1.2.0-rc.1"}),
        (registry, {"plugin_version": ""}),
        (registry, {"plugin_version": "newest"}),
        (registry, {"slot": "webhook"}),
        (registry, {"entry": "second"}),
        (registry, {"purpose": PURPOSE_DELIVERY_SIGN}),
        (registry, {"subject": "tenants/acme/connections/other"}),
        (registry, {"subject": "tenants/other/connections/main"}),
        (registry, {"subject": "tenants/nobody/connections/main"}),
    ):
        denied = await lease(client, **plugin(**changed))
        assert denied.failure.kind == FAILURE_KIND_PERMISSION_DENIED, changed
    unaskable: tuple[dict[str, Any], ...] = (
        {"subject": "apps/github"},
        {"subject": ""},
        {"subject": "tenants/acme/connections/a\0"},
        {"purpose": 0},
        {"purpose": 99},
        {"entry": "x" * 513},
    )
    for changed in unaskable:
        refused = await lease(registry, **plugin(**changed))
        assert refused.failure.kind == FAILURE_KIND_INVALID_INPUT, changed


@pytest.mark.usefixtures("hook")
async def test_a_grant_narrows_the_fields(admin: Client, registry: Client) -> None:
    value = SecretValue(basic=Basic(username="ada", password=KEY))
    await for_plugin(admin, value, fields=["password"])
    assert dict((await lease(registry, **plugin())).secret.fields) == {"password": KEY.encode()}
    [record] = await records(admin, action="lease.acquire", principal="services/registry")
    assert list(record.fields) == ["password"]


@pytest.mark.usefixtures("hook")
async def test_what_makes_sessions_never_leaves_itself(admin: Client, registry: Client) -> None:
    client = Oauth2ClientCredentials(
        client_id="tieline", client_secret=KEY, token_url="https://127.0.0.1:1/token"
    )
    await for_plugin(admin, SecretValue(oauth2_client_credentials=client))
    answer = await lease(registry, **plugin())
    assert answer.failure.kind in (FAILURE_KIND_AUTH_FAILED, FAILURE_KIND_TRANSIENT)
    assert KEY not in str(answer)


@pytest.mark.usefixtures("hook")
async def test_a_suspended_tenant_gets_nothing_and_loses_what_it_has(admin: Client, gateway: Client) -> None:
    given = (await lease(gateway)).secret.lease
    async with watching(gateway) as told:
        await admin.tenants.SuspendTenant(SuspendTenantRequest(name="tenants/acme", reason="unpaid"))
        await until(lambda: told.states.get(given.name) == Lease.STATE_REVOKED, 30)
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    await admin.tenants.ResumeTenant(ResumeTenantRequest(name="tenants/acme"))
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


@pytest.mark.usefixtures("hook")
async def test_what_does_not_work_is_not_given_and_why_is_said(
    running: Running, admin: Client, gateway: Client
) -> None:
    await running.sql("update credentials.credentials set state = 'REAUTHORISATION_REQUIRED'")
    refused = (await lease(gateway)).failure
    assert (refused.kind, refused.reason) == (
        FAILURE_KIND_AUTH_FAILED,
        "CREDENTIAL_REAUTHORISATION_REQUIRED",
    )
    await running.sql("update credentials.credentials set state = 'VALID'")
    await running.sql("update credentials.credential_versions set expires_at = now() - interval '1 second'")
    assert (await lease(gateway)).failure.reason == "CREDENTIAL_EXPIRED"
    denied = await records(admin, action="lease.acquire")
    assert [record.outcome for record in denied] == [AuditRecord.OUTCOME_DENIED] * 2


@pytest.mark.usefixtures("hook")
async def test_a_lease_ends_with_what_it_is_for(running: Running, gateway: Client) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)
    await running.sql("update credentials.credential_versions set expires_at = $1", soon)
    given = (await lease(gateway)).secret
    assert given.lease.expire_time.ToDatetime(UTC) == given.expire_time.ToDatetime(UTC) == soon
    await running.sql("update credentials.credential_versions set expires_at = null")
    await running.sql("update credentials.grants set expires_at = $1", soon - timedelta(minutes=1))
    sooner = (await lease(gateway)).secret.lease
    assert sooner.expire_time.ToDatetime(UTC) == soon - timedelta(minutes=1)
    await running.sql("update credentials.grants set expires_at = null")
    whole = (await lease(gateway)).secret.lease
    assert timedelta() < whole.expire_time.ToDatetime(UTC) - datetime.now(UTC) <= timedelta(hours=1)
    assert whole.name == sooner.name == given.lease.name


@pytest.mark.usefixtures("hook")
async def test_one_answer_for_each_request_in_its_order(admin: Client, registry: Client) -> None:
    await for_plugin(admin)
    Request = AcquireLeasesRequest.LeaseRequest  # noqa: N806
    wanted = [Request(subject=CONNECTION, **plugin()), Request(subject="x"), Request(subject=CONNECTION)] * 30
    answer = await registry.leases.AcquireLeases(AcquireLeasesRequest(requests=wanted))
    kinds = [outcome.WhichOneof("outcome") for outcome in answer.outcomes]
    assert kinds == ["secret", "failure", "failure"] * 30
    too_many = AcquireLeasesRequest(requests=wanted * 6)
    assert await refusal(registry.leases.AcquireLeases(too_many)) is Code.INVALID_ARGUMENT
    assert len((await registry.leases.AcquireLeases(AcquireLeasesRequest())).outcomes) == 0


@pytest.mark.usefixtures("hook")
async def test_a_grant_that_is_narrowed_is_told(admin: Client, registry: Client) -> None:
    value = SecretValue(basic=Basic(username="ada", password=KEY))
    grant = await for_plugin(admin, value)
    given = (await lease(registry, **plugin())).secret
    assert set(given.fields) == {"username", "password"}
    async with watching(registry) as told:
        grant.fields.append("username")
        request = CreateGrantRequest(parent="tenants/acme/credentials/key", grant=grant)
        await admin.credentials.CreateGrant(request)
        await until(lambda: told.states.get(given.lease.name) == Lease.STATE_OUTDATED, 30)
    narrowed = (await lease(registry, **plugin())).secret
    assert dict(narrowed.fields) == {"username": b"ada"}
    assert (narrowed.lease.name, narrowed.lease.state) == (given.lease.name, Lease.STATE_ACTIVE)


async def test_no_value_shows_in_what_we_say(
    settings: tuple[CredentialsSettings, str], capfd: pytest.CaptureFixture[str]
) -> None:
    talkative = msgspec.structs.replace(settings[0], log_level="debug")
    async with started(talkative, settings[1]) as running:
        admin, registry = await running.as_("tl_admin"), await running.as_("tl_registry")
        await make_tenant(admin)
        await for_plugin(admin)
        given = (await lease(registry, **plugin())).secret
        assert given.fields["key"] == KEY.encode()
        await lease(registry, **plugin(slot="other"))
        async with watching(registry) as told:
            assert set(told.states) == {given.lease.name}
        await running.sql("update credentials.credential_versions set sealed = '\\x00'")
        said = [await lease(registry, **plugin()), *await records(admin)]
        metrics = await asyncio.to_thread(read_metrics, running)
        tables = [
            row
            for table in ("leases", "audit_records", "audit_heads", "credentials", "grants", "notices")
            for row in await running.sql(f"select to_jsonb(t)::text from credentials.{table} t")  # noqa: S608
        ]
    written = "".join(capfd.readouterr())
    assert "/tieline.credentials.v1.LeaseService/AcquireLeases" in written
    assert "tieline_" in metrics
    for text in (written, metrics, str(said), str(tables)):
        assert KEY not in text
        assert KEY.encode().hex() not in text


# one lease for many


@pytest.mark.usefixtures("hook")
async def test_many_at_once_in_two_replicas_share_one_lease_and_few_commits(
    running: Running, gateway: Client
) -> None:
    async with replica(running) as second:
        other = await second.as_("tl_gateway")
        outcomes = await asyncio.gather(
            *(lease(client, slot="webhook") for client in (gateway, other) for _ in range(100))
        )
    assert {outcome.secret.fields["secret"] for outcome in outcomes} == {SECRET.encode()}
    assert len({outcome.secret.lease.name for outcome in outcomes}) == 1
    assert len(await running.sql("select * from credentials.leases")) == 1
    intents = await running.sql(
        "select count(*) as number, count(distinct xmin::text) as commits from credentials.audit_records"
        " where action = 'lease.acquire' and outcome = 1"
    )
    assert intents[0]["number"] == 200, "each release is on record"
    assert intents[0]["commits"] < 100, "and they shared transactions"


@pytest.mark.usefixtures("hook")
async def test_the_intent_is_written_before_and_names_no_value(admin: Client, gateway: Client) -> None:
    given = (await lease(gateway)).secret.lease
    [record] = await records(admin, action="lease.*")
    assert (record.outcome, record.principal) == (AuditRecord.OUTCOME_INTENT, "services/gateway")
    assert (record.resource, list(record.fields)) == (HOOK, ["secret"])
    assert record.details["subject"] == CONNECTION
    assert record.details["version"] == str(given.version.version)
    assert SECRET not in str(await records(admin))


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize(
    "taken_back",
    [
        "delete from credentials.grants",
        "update credentials.grants set expires_at = now() - interval '1 second'",
        "update credentials.credentials set state = 'REFUSED'",
        "update credentials.tenants set state = 'SUSPENDED'",
    ],
)
async def test_what_was_taken_back_while_the_intent_was_written_is_not_given(
    running: Running, gateway: Client, taken_back: str
) -> None:
    """Also to a holder who has it already, whose lease was found before and is revoked by now."""
    assert (await lease(gateway)).secret.fields
    other_side = await asyncpg.connect(running.admin_url)
    try:
        async with other_side.transaction():
            await other_side.execute("select 1 from credentials.audit_heads for update")
            asking = asyncio.create_task(lease(gateway))

            async def waits() -> bool:
                return bool(
                    await running.sql(
                        "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
                    )
                )

            await until(waits, 30)
            await other_side.execute(taken_back)
            await other_side.execute("update credentials.leases set state = 'REVOKED'")
        answer = await asking
    finally:
        await other_side.close()
    assert answer.failure.reason == "GRANT_MISSING"
    assert not answer.secret.fields


@pytest.mark.usefixtures("hook")
async def test_what_fails_after_the_intent_is_recorded_as_failed(
    running: Running, admin: Client, gateway: Client
) -> None:
    await running.sql("update credentials.credential_versions set sealed = '\\x00'")
    assert (await lease(gateway)).failure.reason == "SECRET_UNOPENABLE"
    failed, intent = await records(admin, action="lease.acquire")
    assert (failed.outcome, failed.intent_sequence) == (AuditRecord.OUTCOME_FAILED, intent.sequence)


@pytest.mark.usefixtures("hook")
async def test_nothing_leaves_while_the_audit_cannot_be_written(
    running: Running, admin: Client, gateway: Client
) -> None:
    await lease(gateway)
    await running.sql("revoke insert on credentials.audit_records from tieline_credentials_service")
    assert await refusal(lease(gateway)) is Code.DEPENDENCY_UNAVAILABLE
    assert await refusal(make_tenant(admin, "second")) is not None
    read = await admin.credentials.GetCredential(GetCredentialRequest(name=HOOK))
    assert read.name == HOOK
    async with connect(running.address) as channel:
        await check_health(channel, "credentials")
    await running.sql("grant insert on credentials.audit_records to tieline_credentials_service")
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


async def test_a_flood_of_refusals_is_one_record(running: Running, admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    for _ in range(30):
        assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    stranger = {"subject": "tenants/nobody/connections/main"}
    await asyncio.gather(*(lease(gateway, **stranger) for _ in range(30)))
    [denied] = await records(admin, action="lease.acquire")
    assert (denied.outcome, denied.resource) == (AuditRecord.OUTCOME_DENIED, CONNECTION)
    heads = await running.sql("select tenant from credentials.audit_heads order by tenant")
    assert [row["tenant"] for row in heads] == ["", "acme"], "made-up tenants make no chains"


async def test_refusals_that_were_counted_are_written_at_the_end(
    settings: tuple[CredentialsSettings, str],
) -> None:
    async with started(*settings) as first:
        admin, gateway = await first.as_("tl_admin"), await first.as_("tl_gateway")
        await make_tenant(admin)
        for _ in range(5):
            await lease(gateway)
    async with started(*settings) as second:
        [counted, first_one] = await records(await second.as_("tl_admin"), action="lease.acquire")
    assert counted.details["repeated"] == "4"
    assert "repeated" not in first_one.details


# what becomes of it


@pytest.mark.usefixtures("hook")
async def test_holders_are_told_in_every_replica(running: Running, admin: Client, gateway: Client) -> None:
    given = (await lease(gateway)).secret.lease
    async with replica(running) as second, watching(await second.as_("tl_gateway")) as told:
        assert told.states == {given.name: Lease.STATE_ACTIVE}
        await add_version(admin, secret(NEXT))
        await until(lambda: told.states.get(given.name) == Lease.STATE_OUTDATED, 30)
        renewed = (await lease(gateway)).secret
        assert renewed.fields["secret"] == NEXT.encode()
        assert renewed.lease.name != given.name
        await admin.credentials.RevokeCredential(RevokeCredentialRequest(name=HOOK))
        await until(lambda: told.states.get(renewed.lease.name) == Lease.STATE_REVOKED, 30)
        assert told.generations == sorted(set(told.generations))
    refused = (await lease(gateway)).failure
    assert (refused.kind, refused.reason) == (FAILURE_KIND_AUTH_FAILED, "CREDENTIAL_REVOKED")


async def test_a_grant_that_is_taken_back_revokes(admin: Client, gateway: Client, hook: Grant) -> None:
    given = (await lease(gateway)).secret.lease
    async with watching(gateway) as told:
        await admin.credentials.DeleteGrant(DeleteGrantRequest(name=hook.name))
        await until(lambda: told.states.get(given.name) == Lease.STATE_REVOKED, 30)
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    await make_grant(admin)
    assert (await lease(gateway)).secret.lease.name != given.name, "what was revoked stays revoked"


@pytest.mark.usefixtures("hook")
async def test_during_an_overlap_both_secrets_are_given(admin: Client, gateway: Client) -> None:
    await add_version(admin, secret(NEXT), overlap=Duration(seconds=3600))
    given = (await lease(gateway)).secret
    assert (given.fields["secret"], list(given.previous_secrets)) == (NEXT.encode(), [SECRET.encode()])
    assert (given.lease.version.version, list(given.previous_versions)) == (2, [1])
    [intent] = await records(admin, action="lease.acquire")
    assert (intent.details["version"], intent.details["beside"]) == ("2", "1")
    async with watching(gateway) as told:
        await admin.credentials.RevokeCredential(RevokeCredentialRequest(name=HOOK, version=1))
        await until(lambda: told.states.get(given.lease.name) == Lease.STATE_OUTDATED, 30)
    again = (await lease(gateway)).secret
    assert (again.lease.name, again.lease.state) == (given.lease.name, Lease.STATE_ACTIVE)
    assert list(again.previous_secrets) == []


@pytest.mark.usefixtures("hook")
async def test_the_host_is_told_of_its_plugins_and_nobody_of_others(
    running: Running, admin: Client, registry: Client, gateway: Client
) -> None:
    await for_plugin(admin)
    of_plugin = (await lease(registry, **plugin())).secret.lease
    of_gateway = (await lease(gateway)).secret.lease
    mapper = await running.as_("tl_mapper")
    async with watching(registry) as host, watching(gateway) as edge, watching(mapper) as nobody:
        assert set(host.states) == {of_plugin.name}
        assert set(edge.states) == {of_gateway.name}
        assert nobody.states == {}


@pytest.mark.usefixtures("hook")
async def test_what_is_given_back_is_gone(
    running: Running, admin: Client, registry: Client, gateway: Client
) -> None:
    given = (await lease(gateway)).secret.lease
    names = [given.name, f"{HOOK}/leases/l-0"]
    await registry.leases.ReleaseLeases(ReleaseLeasesRequest(names=names))
    assert len(await running.sql("select * from credentials.leases")) == 1, "it is not the registry's"
    async with watching(gateway) as told:
        await gateway.leases.ReleaseLeases(ReleaseLeasesRequest(names=names))
        await until(lambda: told.states == {}, 30)
    await gateway.leases.ReleaseLeases(ReleaseLeasesRequest(names=names))
    released = await records(admin, action="lease.release")
    assert [record.resource for record in released] == [given.name]
    nonsense = gateway.leases.ReleaseLeases(ReleaseLeasesRequest(names=["x"]))
    assert await refusal(nonsense) is Code.INVALID_ARGUMENT


@pytest.mark.usefixtures("hook")
async def test_who_holds_what_is_listed_in_pages(
    running: Running, admin: Client, registry: Client, gateway: Client
) -> None:
    await for_plugin(admin)
    names = sorted(
        [(await lease(gateway)).secret.lease.name, (await lease(registry, **plugin())).secret.lease.name]
    )
    everything = ListLeasesRequest(parent="tenants/acme/credentials/-", page_size=1)
    first = await admin.leases.ListLeases(everything)
    everything.page_token = first.next_page_token
    second = await admin.leases.ListLeases(everything)
    assert [one.name for one in (*first.leases, *second.leases)] == names
    assert second.next_page_token == ""
    of_one = await admin.leases.ListLeases(ListLeasesRequest(parent=HOOK))
    assert [one.holder for one in of_one.leases] == ["services/gateway"]
    await running.sql("update credentials.leases set expires_at = now()")
    assert len((await admin.leases.ListLeases(ListLeasesRequest(parent=HOOK))).leases) == 0


@pytest.mark.usefixtures("hook")
async def test_what_a_provider_refuses_pauses_who_uses_it(admin: Client, registry: Client) -> None:
    await for_plugin(admin)
    given = (await lease(registry, **plugin())).secret.lease
    failure = Failure(kind=FAILURE_KIND_AUTH_FAILED, message="bad credentials")
    report = ReportRefusalRequest(lease=given.name, failure=failure)
    answers = await asyncio.gather(*(registry.leases.ReportRefusal(report) for _ in range(10)))
    assert {answer.advice for answer in answers} == {ReportRefusalResponse.ADVICE_GIVE_UP}
    stored = await admin.credentials.GetCredential(GetCredentialRequest(name="tenants/acme/credentials/key"))
    assert (stored.state, stored.failure.message) == (Credential.STATE_REFUSED, "bad credentials")
    assert len(await records(admin, action="credential.refuse")) == 1
    assert (await lease(registry, **plugin())).failure.reason == "CREDENTIAL_REFUSED"


@pytest.mark.usefixtures("hook")
async def test_who_reports_an_old_version_is_told_to_come_again(
    admin: Client, gateway: Client, registry: Client
) -> None:
    given = (await lease(gateway)).secret.lease
    await add_version(admin, secret(NEXT))
    report = ReportRefusalRequest(lease=given.name, failure=Failure(kind=FAILURE_KIND_AUTH_FAILED))
    answer = await gateway.leases.ReportRefusal(report)
    assert answer.advice == ReportRefusalResponse.ADVICE_REACQUIRE
    assert await refusal(registry.leases.ReportRefusal(report)) is Code.NOT_FOUND
    report.failure.credential_version.version = 7
    assert await refusal(gateway.leases.ReportRefusal(report)) is Code.INVALID_ARGUMENT
    report.failure.kind = FAILURE_KIND_TRANSIENT
    assert await refusal(gateway.leases.ReportRefusal(report)) is Code.INVALID_ARGUMENT
