"""What happens to credentials over their life, seen through the API and from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import nats
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from foundation.engines.testing import Served
from foundation.errors import Code, Problem
from foundation.process.testing import until
from tests.services.credentials.conftest import Client, Running
from tests.services.credentials.test_service import (
    CONNECTION,
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tieline.credentials.v1.credentials_pb2 import (
    AddCredentialVersionRequest,
    CreateCredentialRequest,
    CreateGrantRequest,
    Credential,
    CredentialVersion,
    DeleteCredentialRequest,
    DeleteGrantRequest,
    GetCredentialRequest,
    Grant,
    ListCredentialVersionsRequest,
    ListGrantsRequest,
    RevokeCredentialRequest,
    RotateCredentialRequest,
    UpdateCredentialRequest,
    ValidateCredentialRequest,
    WatchCredentialStatesRequest,
    WatchCredentialStatesResponse,
)
from tieline.credentials.v1.secrets_pb2 import ApiKey, SecretValue, WebhookSecret
from tieline.event.v1.content_pb2 import FailureFacts
from tieline.event.v1.event_pb2 import AUTHENTICITY_INTERNAL, Event

HOOK = "tenants/acme/credentials/hook"
NEXT = "the next webhook secret of acme"
State = Credential.State


def secret(text: str) -> SecretValue:
    return SecretValue(webhook_secret=WebhookSecret(secret=text))


async def make_key(admin: Client, name: str = "key", **changed: Any) -> Credential:
    value = SecretValue(api_key=ApiKey(key="a key of acme"))
    if ends := changed.pop("ends", None):
        value.expire_time.FromDatetime(ends)
    request = CreateCredentialRequest(parent="tenants/acme", credential_id=name, value=value, **changed)
    return await admin.credentials.CreateCredential(request)


async def add_version(admin: Client, value: SecretValue, **changed: Any) -> Credential:
    request = AddCredentialVersionRequest(name=HOOK, value=value, **changed)
    return await admin.credentials.AddCredentialVersion(request)


async def get(admin: Client, name: str = HOOK) -> Credential:
    return await admin.credentials.GetCredential(GetCredentialRequest(name=name))


async def versions(admin: Client) -> list[tuple[int, int]]:
    answer = await admin.credentials.ListCredentialVersions(ListCredentialVersionsRequest(parent=HOOK))
    return [(one.version, one.state) for one in answer.credential_versions]


@pytest.fixture
async def hooked(admin: Client) -> Client:
    """A tenant with a webhook secret that the gateway may have."""
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    return admin


# versions


async def test_a_new_version_is_used_at_once_and_the_old_one_is_accepted_for_a_while(
    running: Running, hooked: Client, gateway: Client
) -> None:
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()
    after = await add_version(hooked, secret(NEXT), overlap=Duration(seconds=3600))
    assert after.current_version == 2
    given = (await lease(gateway)).secret
    assert (given.lease.version.version, given.fields["secret"]) == (2, NEXT.encode())
    assert list(given.previous_secrets) == [SECRET.encode()]
    assert await versions(hooked) == [
        (2, CredentialVersion.STATE_CURRENT),
        (1, CredentialVersion.STATE_OVERLAPPING),
    ]
    await running.sql("update credentials.credential_versions set accepted_until = now() where version = 1")

    async def destroyed() -> bool:
        rows = await running.sql(
            "select wrapped_key, sealed from credentials.credential_versions where version = 1"
        )
        return (rows[0]["wrapped_key"], rows[0]["sealed"]) == (None, None)

    await until(destroyed, 30)
    assert await versions(hooked) == [
        (2, CredentialVersion.STATE_CURRENT),
        (1, CredentialVersion.STATE_DESTROYED),
    ]
    assert list((await lease(gateway)).secret.previous_secrets) == []


async def test_without_overlap_the_old_version_is_over_at_once(hooked: Client, gateway: Client) -> None:
    await add_version(hooked, secret(NEXT))
    given = (await lease(gateway)).secret
    assert (given.fields["secret"], list(given.previous_secrets)) == (NEXT.encode(), [])


async def test_a_version_is_added_once_for_one_request(hooked: Client) -> None:
    for _ in range(2):
        assert (await add_version(hooked, secret(NEXT), request_id="a-request")).current_version == 2
    assert len(await versions(hooked)) == 2


async def test_a_version_of_another_kind_is_refused(hooked: Client) -> None:
    other = SecretValue(api_key=ApiKey(key="k"))
    with pytest.raises(Problem, match="the credential of kind webhook_secret"):
        await add_version(hooked, other)
    assert len(await versions(hooked)) == 1


async def test_what_is_only_checked_changes_nothing(running: Running, hooked: Client) -> None:
    before = await running.sql("select * from credentials.credentials")
    await add_version(hooked, secret(NEXT), validate_only=True)
    await make_key(hooked, validate_only=True)
    assert await running.sql("select * from credentials.credentials") == before
    with pytest.raises(Problem, match=r"value\.webhook_secret\.secret"):
        await add_version(hooked, secret("short"), validate_only=True)


async def test_the_vault_makes_a_new_webhook_secret(hooked: Client, gateway: Client) -> None:
    rotate = RotateCredentialRequest(name=HOOK, current_version=1)
    assert (await hooked.credentials.RotateCredential(rotate)).current_version == 2
    assert (await hooked.credentials.RotateCredential(rotate)).current_version == 2, "it was done already"
    given = (await lease(gateway)).secret
    assert len(given.fields["secret"]) == 64
    assert list(given.previous_secrets) == [SECRET.encode()]


async def test_what_the_vault_cannot_make_is_said_to_be_a_persons(admin: Client) -> None:
    await make_tenant(admin)
    name = (await make_key(admin)).name
    with pytest.raises(Problem) as refused:
        await admin.credentials.RotateCredential(RotateCredentialRequest(name=name))
    assert refused.value.code is Code.ROTATION_BY_PERSON


async def test_a_webhook_secret_is_replaced_by_the_clock(running: Running, hooked: Client) -> None:
    before = await get(hooked)
    renewal = Credential.Renewal(
        automatic=True, period=Duration(seconds=86_400), overlap=Duration(seconds=3600)
    )
    changed = Credential(name=HOOK, renewal=renewal, etag=before.etag)
    after = await hooked.credentials.UpdateCredential(
        UpdateCredentialRequest(credential=changed, update_mask=FieldMask(paths=["renewal"]))
    )
    assert after.renewal.HasField("next_time")
    await running.sql("update credentials.credentials set renews_at = now()")

    async def replaced() -> bool:
        return (await get(hooked)).current_version == 2

    await until(replaced, 30)
    [newest, _] = (
        await hooked.credentials.ListCredentialVersions(ListCredentialVersionsRequest(parent=HOOK))
    ).credential_versions
    assert newest.author == "rotation"


# taking away


async def test_a_revoked_credential_is_gone_for_everybody_and_for_good(
    running: Running, hooked: Client, gateway: Client
) -> None:
    await lease(gateway)
    revoked = await hooked.credentials.RevokeCredential(RevokeCredentialRequest(name=HOOK, reason="leaked"))
    assert revoked.state == State.STATE_REVOKED
    assert (await lease(gateway)).HasField("failure")
    assert await refusal(add_version(hooked, secret(NEXT))) is Code.STATE_REFUSES
    rows = await running.sql("select wrapped_key, sealed from credentials.credential_versions")
    assert [tuple(row) for row in rows] == [(None, None)]


async def test_an_old_version_is_revoked_alone(hooked: Client, gateway: Client) -> None:
    await add_version(hooked, secret(NEXT), overlap=Duration(seconds=3600))
    await hooked.credentials.RevokeCredential(RevokeCredentialRequest(name=HOOK, version=1))
    given = (await lease(gateway)).secret
    assert (given.fields["secret"], list(given.previous_secrets)) == (NEXT.encode(), [])
    current = RevokeCredentialRequest(name=HOOK, version=2)
    assert await refusal(hooked.credentials.RevokeCredential(current)) is Code.STATE_REFUSES
    unknown = RevokeCredentialRequest(name=HOOK, version=9)
    assert await refusal(hooked.credentials.RevokeCredential(unknown)) is Code.NOT_FOUND


async def test_what_is_in_use_is_deleted_only_by_force(
    running: Running, hooked: Client, gateway: Client
) -> None:
    with pytest.raises(Problem, match=CONNECTION):
        await hooked.credentials.DeleteCredential(DeleteCredentialRequest(name=HOOK))
    stale = DeleteCredentialRequest(name=HOOK, etag="0", force=True)
    assert await refusal(hooked.credentials.DeleteCredential(stale)) is Code.CONFLICT
    for _ in range(2):  # the second time there is nothing, which is as wanted
        await hooked.credentials.DeleteCredential(DeleteCredentialRequest(name=HOOK, force=True))
    assert await refusal(get(hooked)) is Code.NOT_FOUND
    assert (await lease(gateway)).HasField("failure")
    for table in ("credentials", "credential_versions", "grants"):
        assert await running.sql(f"select * from credentials.{table}") == []  # noqa: S608


async def test_a_grant_that_is_taken_back_gives_nothing_more(hooked: Client, gateway: Client) -> None:
    listed = await hooked.credentials.ListGrants(ListGrantsRequest(parent="tenants/acme/credentials/-"))
    [grant] = listed.grants
    assert (grant.service, grant.connection) == ("gateway", CONNECTION)
    narrowed = ListGrantsRequest(parent=HOOK, connection="tenants/acme/connections/other")
    assert list((await hooked.credentials.ListGrants(narrowed)).grants) == []
    for _ in range(2):
        await hooked.credentials.DeleteGrant(DeleteGrantRequest(name=grant.name))
    assert (await lease(gateway)).HasField("failure")


async def test_a_grant_that_could_give_nothing_is_refused(hooked: Client) -> None:
    await make_key(hooked)

    async def create(parent: str, **changed: Any) -> Code:
        wanted: dict[str, Any] = {"plugin": "github", "connection": CONNECTION, "slot": "api", "purpose": 1}
        request = CreateGrantRequest(parent=parent, grant=Grant(**(wanted | changed)))
        return await refusal(hooked.credentials.CreateGrant(request))

    key = "tenants/acme/credentials/key"
    assert await create(key, purpose=2) is Code.INVALID_ARGUMENT, "an API key verifies no webhook"
    assert await create(key, fields=["refresh_token"]) is Code.INVALID_ARGUMENT
    assert await create(key, slot="NO SLOT") is Code.INVALID_ARGUMENT
    assert await create(key, plugin="../etc") is Code.INVALID_ARGUMENT
    assert await create("tenants/acme/credentials/none") is Code.NOT_FOUND


# changing


async def test_what_a_person_may_change_and_only_from_what_they_saw(hooked: Client) -> None:
    before = await get(hooked)

    async def update(*paths: str, **changed: Any) -> Credential:
        credential = Credential(name=HOOK, **({"etag": before.etag} | changed))
        mask = FieldMask(paths=paths)
        return await hooked.credentials.UpdateCredential(
            UpdateCredentialRequest(credential=credential, update_mask=mask)
        )

    after = await update("title", "labels", title="Hooks of acme", labels={"team": "core"})
    assert (after.title, dict(after.labels)) == ("Hooks of acme", {"team": "core"})
    assert await refusal(update("title", title="Late")) is Code.CONFLICT
    fresh = {"etag": after.etag}
    assert await refusal(update("kind", **fresh)) is Code.INVALID_ARGUMENT
    assert await refusal(update(**fresh)) is Code.INVALID_ARGUMENT
    assert await refusal(update("labels", labels={"No": "x"}, **fresh)) is Code.INVALID_ARGUMENT
    too_often = Credential.Renewal(automatic=True, period=Duration(seconds=60))
    assert await refusal(update("renewal", renewal=too_often, **fresh)) is Code.INVALID_ARGUMENT


async def test_a_credential_that_only_a_plugin_can_try_says_so(hooked: Client) -> None:
    with pytest.raises(Problem, match="tried by a plugin"):
        await hooked.credentials.ValidateCredential(ValidateCredentialRequest(name=HOOK))


# what time brings, and who hears of it


@asynccontextmanager
async def heard(engines: Served, tenant: str = "acme") -> AsyncIterator[Callable[[str], Awaitable[Event]]]:
    """Listens to a tenant's notices; answers with the first one of a type that is awaited."""
    client = await nats.connect(engines.nats)
    events: list[Event] = []

    async def hear(message: Any) -> None:
        events.append(Event.FromString(message.data))

    await client.subscribe(f"notices.credentials.{tenant}", cb=hear)
    await client.flush()

    async def first(type_: str) -> Event:
        await until(lambda: [event for event in events if event.type == type_], 30)
        return next(event for event in events if event.type == type_)

    try:
        yield first
    finally:
        await client.close()


async def test_people_are_warned_before_a_credential_ends_and_told_when_it_has(
    running: Running, admin: Client, engines: Served
) -> None:
    await make_tenant(admin)
    name = (await make_key(admin)).name
    shift = "update credentials.credentials set expires_at = now() + $1"
    async with heard(engines) as first:
        for days, left in ((30, 29.5), (7, 6.5), (1, 0.5)):
            await running.sql(shift, timedelta(days=left))

            async def warned(days: int = days) -> bool:
                rows = await running.sql("select warned_days from credentials.credentials")
                return bool(rows[0]["warned_days"] == days)

            await until(warned, 30)
        event = await first("tieline.credential.expiring")
        assert event.authenticity == AUTHENTICITY_INTERNAL
        assert event.source.component == "credentials"
        assert "within 30 days" in event.title
        assert '"audience": "tenant-admin"' in event.attributes.decode()
        assert (await get(admin, name)).state == State.STATE_EXPIRING
        await running.sql(shift, timedelta(seconds=-1))
        over = await first("tieline.credential.expired")
        assert over.failure.state == FailureFacts.STATE_FAILING
        assert (await get(admin, name)).state == State.STATE_EXPIRED


async def test_an_ended_credential_works_again_with_a_new_version(
    running: Running, hooked: Client, gateway: Client, engines: Served
) -> None:
    async with heard(engines) as first:
        await running.sql("update credentials.credentials set expires_at = now() - interval '1 second'")
        ended = await first("tieline.credential.expired")
        assert CONNECTION in ended.attributes.decode()
        assert (await lease(gateway)).HasField("failure")
        await add_version(hooked, secret(NEXT))
        again = await first("tieline.credential.recovered")
        assert (again.failure.state, again.failure.key) == (FailureFacts.STATE_RECOVERED, ended.failure.key)
        assert (await lease(gateway)).secret.fields["secret"] == NEXT.encode()


async def test_the_registry_is_told_of_every_state_and_whom_it_concerns(
    hooked: Client, running: Running
) -> None:
    mapper = await running.as_("tl_mapper")
    watch = mapper.credentials.WatchCredentialStates(WatchCredentialStatesRequest())
    stream = aiter(watch)

    async def told(state: State.ValueType) -> WatchCredentialStatesResponse.CredentialState:
        async for message in stream:
            if [one.state for one in message.states] == [state]:
                return message.states[0]
        raise AssertionError("the stream ended")

    first = await told(State.STATE_UNCHECKED)
    assert (first.credential, list(first.connections), first.current_version) == (HOOK, [CONNECTION], 1)
    await make_key(hooked)  # no grant covers it, so nobody hears of it
    await hooked.credentials.RevokeCredential(RevokeCredentialRequest(name=HOOK))
    assert list((await told(State.STATE_REVOKED)).connections) == [CONNECTION]
    watch.cancel()
