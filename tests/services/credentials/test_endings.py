"""Grants end with their connection, and a lease may name the credential that it means."""

from __future__ import annotations

from datetime import timedelta

from foundation.errors import Code
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
from tieline.common.v1.failure_pb2 import FAILURE_KIND_INVALID_INPUT, FAILURE_KIND_PERMISSION_DENIED
from tieline.credentials.v1.credentials_pb2 import (
    PURPOSE_WEBHOOK_VERIFY,
    CreateGrantRequest,
    EndGrantsRequest,
    Grant,
    ListGrantsRequest,
)

OTHER = "tenants/acme/connections/other"


async def grants(admin: Client) -> set[tuple[str, str]]:
    """Credential and connection of each."""
    page = await admin.credentials.ListGrants(ListGrantsRequest(parent="tenants/acme/credentials/-"))
    return {(one.name.split("/")[3], one.connection.rpartition("/")[2]) for one in page.grants}


async def second_grant(admin: Client, connection: str = CONNECTION) -> None:
    grant = Grant(service="gateway", connection=connection, slot="webhook", purpose=PURPOSE_WEBHOOK_VERIFY)
    await admin.credentials.CreateGrant(
        CreateGrantRequest(parent="tenants/acme/credentials/spare", grant=grant)
    )


async def test_a_lease_names_the_credential_that_it_means(admin: Client, gateway: Client) -> None:
    """Two revisions of a connection may be served at once, each with its own."""
    await make_tenant(admin)
    await make_credential(admin)
    await make_credential(admin, credential="spare", secret="another secret of acme")
    await make_grant(admin)
    await second_grant(admin)
    assert (await lease(gateway)).secret.fields["secret"] == b"another secret of acme", "the newest grant's"
    first = await lease(gateway, credential="tenants/acme/credentials/hook")
    assert first.secret.fields["secret"] == SECRET.encode()
    none = await lease(gateway, credential="tenants/acme/credentials/none")
    assert none.failure.kind == FAILURE_KIND_PERMISSION_DENIED
    await make_grant(admin)
    assert (await lease(gateway)).secret.fields["secret"] == SECRET.encode(), "given again, it is the newest"


async def test_grants_end_with_their_connection_and_only_the_registry_says_so(
    running: Running, admin: Client, gateway: Client, registry: Client
) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_credential(admin, credential="spare", secret="another secret of acme")
    await make_grant(admin)
    await second_grant(admin)
    await second_grant(admin, OTHER)
    request = EndGrantsRequest(connection=CONNECTION)
    for client in (admin, gateway, await running.as_("tl_mapper")):
        refused = await refusal(client.credentials.EndGrants(request))
        assert refused in (Code.CALLER_KIND_REFUSED, Code.ROLE_MISSING)
    kept = EndGrantsRequest(connection=CONNECTION)
    kept.kept.add(slot="webhook", credential="tenants/acme/credentials/spare")
    kept.settled.FromTimedelta(timedelta(minutes=1))
    assert (await registry.credentials.EndGrants(kept)).ended == 0
    assert await grants(admin) == {("hook", "main"), ("spare", "main"), ("spare", "other")}, "too young"
    kept.ClearField("settled")
    assert (await registry.credentials.EndGrants(kept)).ended == 1
    assert await grants(admin) == {("spare", "main"), ("spare", "other")}
    for _ in range(2):
        await registry.credentials.EndGrants(request)
    assert await grants(admin) == {("spare", "other")}
    assert (await lease(gateway)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    assert (await lease(gateway, subject=OTHER)).secret.fields["secret"] == b"another secret of acme"


async def test_an_app_has_grants_of_its_own_which_end_apart(
    running: Running, admin: Client, registry: Client, gateway: Client
) -> None:
    await make_tenant(admin)
    await make_credential(admin)
    await make_credential(admin, credential="spare", secret="another secret of acme")
    await make_grant(admin)
    for credential in ("hook", "spare"):
        grant = Grant(service="gateway", app="apps/github", slot="webhook", purpose=PURPOSE_WEBHOOK_VERIFY)
        made = await admin.credentials.CreateGrant(
            CreateGrantRequest(parent=f"tenants/acme/credentials/{credential}", grant=grant)
        )
        assert (made.app, made.connection) == ("apps/github", "")
    of_app = {"subject": "apps/github", "credential": "tenants/acme/credentials/hook"}
    given = (await lease(gateway, **of_app)).secret
    assert given.lease.name.startswith("tenants/acme/credentials/hook/leases/")
    # It is nobody's, so the credential says whose; another tenant's grants are never looked at.
    nameless = (await lease(gateway, subject="apps/github")).failure
    assert (nameless.kind, nameless.reason) == (FAILURE_KIND_INVALID_INPUT, "SUBJECT_REFUSED")
    for changed in (
        {"credential": "tenants/other/credentials/hook"},
        {"subject": "apps/other"},
        {"slot": "api"},
    ):
        refused = (await lease(gateway, **(of_app | changed))).failure
        assert refused.kind == FAILURE_KIND_PERMISSION_DENIED, changed
    end = EndGrantsRequest(app="apps/github", app_owner="tenants/acme")
    for client in (admin, gateway, await running.as_("tl_mapper")):
        assert await refusal(client.credentials.EndGrants(end)) in (
            Code.CALLER_KIND_REFUSED,
            Code.ROLE_MISSING,
        )
    kept = EndGrantsRequest(app="apps/github", app_owner="tenants/acme")
    kept.kept.add(slot="webhook", credential="tenants/acme/credentials/hook")
    assert (await registry.credentials.EndGrants(kept)).ended == 1
    assert (await lease(gateway, **of_app)).HasField("secret")
    assert (await registry.credentials.EndGrants(end)).ended == 1
    assert (await lease(gateway, **of_app)).failure.kind == FAILURE_KIND_PERMISSION_DENIED
    assert (await lease(gateway)).HasField("secret"), "the connection's own grant is not the app's"
