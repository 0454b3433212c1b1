"""The life of a tenant: changed, suspended, resumed, deleted for good; and who is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from foundation.errors import Code, Problem
from foundation.process.testing import until
from foundation.rpc import streaming
from services.credentials.identities.directory import DirectoryFile
from services.credentials.settings import CredentialsSettings
from tests.services.credentials.conftest import Client, Running, replica, started
from tests.services.credentials.test_service import (
    SECRET,
    lease,
    make_credential,
    make_grant,
    make_tenant,
    refusal,
)
from tieline.common.v1.options_pb2 import ROLE_TENANT_ADMIN, ROLE_VIEWER
from tieline.credentials.v1.credentials_pb2 import (
    AddCredentialVersionRequest,
    Credential,
    GetCredentialRequest,
    RevokeCredentialRequest,
    RotateCredentialRequest,
)
from tieline.credentials.v1.secrets_pb2 import SecretValue, WebhookSecret
from tieline.credentials.v1.tenants_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    GetTenantRequest,
    ListTenantsRequest,
    ResumeTenantRequest,
    SuspendTenantRequest,
    Tenant,
    UpdateTenantRequest,
    WatchTenantsRequest,
)
from tieline.credentials.v1.tokens_pb2 import ApiToken, CreateApiTokenRequest, ExchangeTokenRequest

ACME = "tenants/acme"


async def tenant(client: Client, name: str = ACME) -> Tenant:
    return await client.tenants.GetTenant(GetTenantRequest(name=name))


async def update(client: Client, paths: list[str], **values: Any) -> Tenant:
    fields = {"name": ACME, "etag": (await tenant(client)).etag} | values
    return await client.tenants.UpdateTenant(
        UpdateTenantRequest(tenant=Tenant(**fields), update_mask=FieldMask(paths=paths))
    )


async def suspend(client: Client, reason: str = "unpaid") -> Tenant:
    return await client.tenants.SuspendTenant(SuspendTenantRequest(name=ACME, reason=reason))


async def resume(client: Client) -> Tenant:
    return await client.tenants.ResumeTenant(ResumeTenantRequest(name=ACME))


async def delete(client: Client, **changed: str) -> Tenant:
    fields = {"name": ACME, "etag": (await tenant(client)).etag, "confirmation": ACME} | changed
    return await client.tenants.DeleteTenant(DeleteTenantRequest(**fields))


async def token_of(client: Client, role: int = ROLE_VIEWER) -> str:
    wanted = CreateApiTokenRequest(parent=ACME, api_token=ApiToken(roles=[role]))  # type: ignore[list-item]
    return (await client.tokens.CreateApiToken(wanted)).secret


async def with_secret(admin: Client, gateway: Client) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_grant(admin)
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()


async def test_title_and_labels_change_from_what_was_read(admin: Client) -> None:
    made = await admin.tenants.CreateTenant(
        CreateTenantRequest(tenant_id="acme", tenant=Tenant(title="Acme", labels={"tier": "gold"}))
    )
    assert (made.title, dict(made.labels)) == ("Acme", {"tier": "gold"})
    changed = await update(admin, ["title"], title="Acme Ltd", labels={"ignored": "yes"})
    assert (changed.title, dict(changed.labels)) == ("Acme Ltd", {"tier": "gold"})
    assert changed.etag != made.etag
    assert dict((await update(admin, ["labels"], labels={"tier": "tin"})).labels) == {"tier": "tin"}
    assert await refusal(update(admin, ["title"], etag=made.etag)) is Code.CONFLICT
    for paths, values in (
        ([], {}),
        (["state"], {}),
        (["title", "nonsense"], {}),
        (["title"], {"etag": ""}),
        (["labels"], {"labels": {f"l{n}": "x" for n in range(33)}}),
        (["labels"], {"labels": {"long": "x" * 257}}),
    ):
        assert await refusal(update(admin, paths, **values)) is Code.INVALID_ARGUMENT
    missing = UpdateTenantRequest(
        tenant=Tenant(name="tenants/none", etag="1"), update_mask=FieldMask(paths=["title"])
    )
    assert await refusal(admin.tenants.UpdateTenant(missing)) is Code.NOT_FOUND


async def test_a_tenant_changes_its_own_title_and_not_its_own_state(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    owner = await running.as_(await token_of(admin, ROLE_TENANT_ADMIN))
    assert (await update(owner, ["title"], title="Ours")).title == "Ours"
    assert await refusal(suspend(owner)) is Code.ROLE_MISSING
    assert await refusal(delete(owner)) is Code.ROLE_MISSING


async def test_a_suspended_tenant_is_given_nothing_until_it_is_resumed(
    running: Running, admin: Client, gateway: Client
) -> None:
    await with_secret(admin, gateway)
    nobody = await running.as_(None)
    exchange = ExchangeTokenRequest(api_token=await token_of(admin))
    suspended = await suspend(admin)
    assert suspended.state == Tenant.STATE_SUSPENDED
    assert await suspend(admin, "another reason") == suspended
    assert not (await lease(gateway)).secret.fields
    held = await running.sql("select state from credentials.leases")
    assert [row["state"] for row in held] == ["REVOKED"]
    assert await refusal(nobody.tokens.ExchangeToken(exchange)) is Code.TOKEN_INVALID
    with pytest.raises(Problem, match="it is suspended: unpaid"):
        await token_of(admin)
    resumed = await resume(admin)
    assert resumed.state == Tenant.STATE_ACTIVE
    assert await resume(admin) == resumed
    await nobody.tokens.ExchangeToken(exchange)
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode()
    assert await refusal(suspend(admin, "x" * 257)) is Code.INVALID_ARGUMENT
    none = SuspendTenantRequest(name="tenants/none")
    assert await refusal(admin.tenants.SuspendTenant(none)) is Code.NOT_FOUND


async def test_a_suspended_tenant_stores_nothing_new_and_what_leaked_is_still_taken_back(
    admin: Client, gateway: Client
) -> None:
    await with_secret(admin, gateway)
    await suspend(admin)
    hook = f"{ACME}/credentials/hook"
    new = AddCredentialVersionRequest(
        name=hook, value=SecretValue(webhook_secret=WebhookSecret(secret="a secret that comes too late"))
    )
    for refused in (
        make_credential(admin, credential="other"),
        make_grant(admin, connection=f"{ACME}/connections/other"),
        admin.credentials.AddCredentialVersion(new),
        admin.credentials.RotateCredential(RotateCredentialRequest(name=hook)),
    ):
        with pytest.raises(Problem, match="it is suspended: unpaid"):
            await refused
    revoked = await admin.credentials.RevokeCredential(RevokeCredentialRequest(name=hook))
    assert revoked.state == Credential.STATE_REVOKED
    with pytest.raises(Problem, match="There is no tenant none"):
        await make_credential(admin, "none")


async def test_deleting_needs_the_name_once_more_and_what_was_last_read(admin: Client) -> None:
    await make_tenant(admin)
    before = await tenant(admin)
    for changed in ({"confirmation": ""}, {"confirmation": "acme"}, {"etag": ""}):
        assert await refusal(delete(admin, **changed)) is Code.INVALID_ARGUMENT
    await update(admin, ["title"], title="changed meanwhile")
    assert await refusal(delete(admin, etag=before.etag)) is Code.CONFLICT
    assert (await tenant(admin)).state == Tenant.STATE_ACTIVE


async def test_with_a_tenant_go_its_keys_and_rows_that_are_put_back_open_nowhere(
    running: Running, admin: Client, gateway: Client
) -> None:
    await with_secret(admin, gateway)
    kept = await running.sql("select * from credentials.credential_versions where tenant = 'acme'")
    await make_tenant(admin, "other")
    async with replica(running) as second:
        other_gateway, other_admin = await second.as_("tl_gateway"), await second.as_("tl_admin")
        assert (await lease(other_gateway)).secret.fields["secret"] == SECRET.encode()
        deleted = await delete(admin)
        assert deleted.state == Tenant.STATE_DELETED
        # At once, in a replica that had the key in memory too.
        for client in (gateway, other_gateway):
            outcome = await lease(client)
            assert outcome.WhichOneof("outcome") == "failure"
            assert not outcome.secret.fields
        keys = await running.sql(
            "select sealed, sealed_other from credentials.tenant_keys where tenant = 'acme'"
        )
        assert [tuple(key) for key in keys] == [(None, None)]
        assert await refusal(make_credential(other_admin, credential="late")) in (
            Code.NOT_FOUND,
            Code.STATE_REFUSES,
        )

        async def removed() -> bool:
            rows = await running.sql("select removed_at from credentials.tenants where id = 'acme'")
            return rows[0]["removed_at"] is not None

        await until(removed, 30)
        # Whoever puts the rows of its secrets back has rows that nothing opens.
        row = dict(kept[0])
        columns, places = ", ".join(row), ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await running.sql(
            f"insert into credentials.credential_versions ({columns}) values ({places})",  # noqa: S608
            *row.values(),
        )
        for client in (gateway, other_gateway):
            assert not (await lease(client)).secret.fields


async def test_of_a_deleted_tenant_only_its_name_and_its_audit_stay(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    await make_credential(admin)
    await make_credential(admin, tenant="other")
    await make_grant(admin)
    await token_of(admin)
    tables = await running.sql("""
        select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant'
        where c.relnamespace = 'credentials'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    """)
    await delete(admin)

    async def left() -> set[str]:
        found = set()
        for (name,) in tables:
            if await running.sql(f"select from credentials.{name} where tenant = 'acme' limit 1"):
                found.add(name)
        if await running.sql("select from credentials.api_tokens where owner = 'tenants/acme'"):
            found.add("api_tokens")
        return found

    async def only_the_audit() -> bool:
        # tenant_keys holds which versions there were, without any of them.
        return {name for name in await left() if not name.startswith("audit_")} == {"tenant_keys"}

    await until(only_the_audit, 30)
    await until(lambda: running.sql("select from credentials.tenants where removed_at is not null"), 30)
    actions = [
        row["action"]
        for row in await running.sql(
            "select action from credentials.audit_records where tenant = 'acme' order by sequence"
        )
    ]
    assert actions[0] == "tenant.create"
    assert actions[-2:] == ["tenant.delete", "tenant.remove"]
    got = await admin.credentials.GetCredential(GetCredentialRequest(name="tenants/other/credentials/hook"))
    assert got.name == "tenants/other/credentials/hook"


async def test_a_deleted_tenant_stays_deleted(admin: Client) -> None:
    await make_tenant(admin)
    deleted = await delete(admin)
    assert await delete(admin, etag="whatever it was") == deleted
    assert await refusal(make_tenant(admin)) is Code.ALREADY_EXISTS
    for change in (suspend(admin), resume(admin), update(admin, ["title"], title="x"), token_of(admin)):
        assert await refusal(change) is Code.STATE_REFUSES
    listed = await admin.tenants.ListTenants(ListTenantsRequest())
    assert list(listed.tenants) == []
    listed = await admin.tenants.ListTenants(ListTenantsRequest(show_deleted=True))
    assert [one.name for one in listed.tenants] == [ACME]


async def test_what_a_kill_left_of_a_deleted_tenant_is_removed_after_the_next_start(
    settings: tuple[CredentialsSettings, str],
) -> None:
    async with started(*settings) as first:
        admin = await first.as_("tl_admin")
        await make_tenant(admin)
        await make_credential(admin)
    # As a process leaves it that was killed right after the commit.
    await first.sql("update credentials.tenants set state = 'DELETED' where id = 'acme'")
    async with started(*settings) as second:

        async def nothing_left() -> bool:
            return not await second.sql("select from credentials.credentials where tenant = 'acme'")

        await until(nothing_left, 30)


async def test_every_watcher_in_every_replica_is_told(
    running: Running, admin: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    async with replica(running) as second:
        elsewhere = await second.as_("tl_gateway")
        async with (
            streaming(gateway.tenants.WatchTenants(WatchTenantsRequest())) as here,
            streaming(elsewhere.tenants.WatchTenants(WatchTenantsRequest())) as there,
        ):
            for watching in (here, there):
                generation = 0
                for change, state in (
                    (None, Tenant.STATE_ACTIVE),
                    (suspend, Tenant.STATE_SUSPENDED),
                    (resume, Tenant.STATE_ACTIVE),
                ):
                    if change is not None:
                        await change(admin)
                    while True:
                        told = await anext(watching)
                        assert told.generation > generation
                        generation = told.generation
                        if [one.state for one in told.tenants] == [state]:
                            break
            await delete(admin)
            for watching in (here, there):
                while (await anext(watching)).tenants:
                    pass
        assert await refusal(_first(admin)) is Code.CALLER_KIND_REFUSED


async def _first(client: Client) -> object:
    async with streaming(client.tenants.WatchTenants(WatchTenantsRequest())) as told:
        return await anext(told)


async def test_tenants_come_from_the_organisations_own_directory(
    settings: tuple[CredentialsSettings, str], tmp_path: Path
) -> None:
    file = tmp_path / "tenants.json"

    def listing(*tenants: dict[str, Any]) -> None:
        file.write_text(json.dumps(tenants))

    acme = {"id": "acme", "title": "Acme", "directory_id": "4711", "labels": {"tier": "gold"}}
    listing(acme, {"id": "other"})
    changed = msgspec.structs.replace(settings[0], tenant_directory=str(file))
    async with started(changed, settings[1]) as running:
        admin = await running.as_("tl_admin")
        await make_tenant(admin, "by-hand")

        async def is_now(name: str, state: int, title: str) -> bool:
            try:
                found = await tenant(admin, f"tenants/{name}")
            except Problem:
                return False
            return (found.state, found.title) == (state, title)

        await until(lambda: is_now("other", Tenant.STATE_ACTIVE, "other"), 30)
        found = await tenant(admin)
        assert (found.title, found.directory, found.directory_id) == ("Acme", "file", "4711")
        assert dict(found.labels) == {"tier": "gold"}
        await make_credential(admin)
        assert await refusal(update(admin, ["title"], title="Ours")) is Code.STATE_REFUSES

        # Who leaves is suspended and not deleted; who was made by hand is none of its business.
        listing({"id": "other", "title": "Renamed"})
        await until(lambda: is_now("acme", Tenant.STATE_SUSPENDED, "Acme"), 30)
        await until(lambda: is_now("other", Tenant.STATE_ACTIVE, "Renamed"), 30)
        assert await is_now("by-hand", Tenant.STATE_ACTIVE, "by-hand")

        # Who returns is resumed, but not where a person had suspended it.
        listing(acme, {"id": "other"})
        await until(lambda: is_now("acme", Tenant.STATE_ACTIVE, "Acme"), 30)
        await suspend(admin, "by a person")
        listing({"id": "other", "title": "Without"})
        await until(lambda: is_now("other", Tenant.STATE_ACTIVE, "Without"), 30)
        listing(acme, {"id": "other", "title": "With"})
        await until(lambda: is_now("other", Tenant.STATE_ACTIVE, "With"), 30)
        assert await is_now("acme", Tenant.STATE_SUSPENDED, "Acme")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ('[{"id": "oth', "truncated"),
        ('[{"id": "A b"}]', "lower-case"),
        ('[{"name": "acme"}]', "id"),
        ('{"id": "acme"}', "array"),
    ],
)
async def test_a_directory_that_cannot_be_read_says_nothing_about_anybody(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "tenants.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Problem, match=words) as refused:
        await DirectoryFile(file).tenants()
    assert refused.value.code is Code.DEPENDENCY_UNAVAILABLE
