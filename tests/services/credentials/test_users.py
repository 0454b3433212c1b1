"""Users, what they may do where, and tokens that stand for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from foundation.errors import Code
from services.credentials.identities.signing import USER_LIFETIME
from tests.services.credentials.conftest import Client, Running
from tests.services.credentials.test_service import make_tenant, refusal
from tieline.common.v1.options_pb2 import (
    PRINCIPAL_KIND_USER,
    ROLE_INGEST,
    ROLE_OPERATOR,
    ROLE_PLATFORM_ADMIN,
    ROLE_SERVICE,
    ROLE_TENANT_ADMIN,
    ROLE_VIEWER,
)
from tieline.credentials.v1.identities_pb2 import (
    CreateUserRequest,
    DeleteMembershipRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListMembershipsRequest,
    ListUsersRequest,
    Membership,
    SetMembershipRequest,
    UpdateUserRequest,
    User,
)
from tieline.credentials.v1.tenants_pb2 import GetTenantRequest, SuspendTenantRequest
from tieline.credentials.v1.tokens_pb2 import (
    ApiToken,
    CreateApiTokenRequest,
    CreatePlatformTokenRequest,
    CreatePlatformTokenResponse,
    ExchangeTokenRequest,
    ExchangeTokenResponse,
    GetApiTokenRequest,
    ListPlatformTokensRequest,
    RevokePlatformTokenRequest,
)

ACME = "tenants/acme"


async def make_user(admin: Client, title: str = "Ada", **fields: Any) -> User:
    return await admin.users.CreateUser(CreateUserRequest(user=User(title=title, **fields)))


async def change(admin: Client, user: User, paths: list[str], **values: Any) -> User:
    etag = (await admin.users.GetUser(GetUserRequest(name=user.name))).etag
    wanted = User(**({"name": user.name, "etag": etag} | values))
    return await admin.users.UpdateUser(UpdateUserRequest(user=wanted, update_mask=FieldMask(paths=paths)))


async def delete(admin: Client, user: User) -> None:
    etag = (await admin.users.GetUser(GetUserRequest(name=user.name))).etag
    await admin.users.DeleteUser(DeleteUserRequest(name=user.name, etag=etag))


def membership_of(user: User, tenant: str = ACME) -> str:
    return f"{tenant}/memberships/{user.name.removeprefix('users/')}"


async def join(client: Client, user: User, *roles: Any, tenant: str = ACME, etag: str = "") -> Membership:
    membership = Membership(name=membership_of(user, tenant), roles=roles, etag=etag)
    return await client.users.SetMembership(SetMembershipRequest(membership=membership))


async def leave(client: Client, user: User, tenant: str = ACME) -> None:
    await client.users.DeleteMembership(DeleteMembershipRequest(name=membership_of(user, tenant)))


async def platform_token(admin: Client, **fields: Any) -> CreatePlatformTokenResponse:
    return await admin.tokens.CreatePlatformToken(CreatePlatformTokenRequest(api_token=ApiToken(**fields)))


async def tenant_token(client: Client, tenant: str = ACME, **fields: Any) -> str:
    request = CreateApiTokenRequest(parent=tenant, api_token=ApiToken(**fields))
    return (await client.tokens.CreateApiToken(request)).secret


async def exchanged(running: Running, secret: str) -> ExchangeTokenResponse:
    return await (await running.as_(None)).tokens.ExchangeToken(ExchangeTokenRequest(api_token=secret))


def tenants_of(answer: ExchangeTokenResponse) -> dict[str, list[int]]:
    return {one.tenant: list(one.roles) for one in answer.tenants}


async def test_a_user_exists_once_for_each_subject(admin: Client) -> None:
    request = CreateUserRequest(
        user=User(title="Ada", email="ada@acme.example", subject="https://id.example|7"), request_id="r-1"
    )
    made = await admin.users.CreateUser(request)
    assert made.name.startswith("users/")
    assert await admin.users.CreateUser(request) == made
    assert await admin.users.GetUser(GetUserRequest(name=made.name)) == made
    assert await refusal(make_user(admin, subject="https://id.example|7")) is Code.ALREADY_EXISTS
    # Without a subject there may be many.
    names = {(await make_user(admin)).name for _ in range(2)}
    first = await admin.users.ListUsers(ListUsersRequest(page_size=2))
    rest = await admin.users.ListUsers(ListUsersRequest(page_size=2, page_token=first.next_page_token))
    assert {one.name for one in (*first.users, *rest.users)} == {made.name, *names}
    assert rest.next_page_token == ""
    assert await refusal(admin.users.GetUser(GetUserRequest(name="users/none"))) is Code.NOT_FOUND
    assert await refusal(make_user(admin, platform_roles=[ROLE_SERVICE])) is Code.INVALID_ARGUMENT


async def test_a_user_changes_from_what_was_read(admin: Client) -> None:
    made = await make_user(admin)
    changed = await change(admin, made, ["title", "email"], title="Ada L.", email="ada@acme.example")
    assert (changed.title, changed.email, changed.disabled) == ("Ada L.", "ada@acme.example", False)
    assert await refusal(change(admin, made, ["title"], etag=made.etag)) is Code.CONFLICT
    for paths in ([], ["subject"], ["name"]):
        assert await refusal(change(admin, made, paths)) is Code.INVALID_ARGUMENT
    stale = DeleteUserRequest(name=made.name, etag=made.etag)
    assert await refusal(admin.users.DeleteUser(stale)) is Code.CONFLICT
    await delete(admin, made)
    assert await refusal(admin.users.GetUser(GetUserRequest(name=made.name))) is Code.NOT_FOUND


async def test_memberships_are_set_listed_and_ended(admin: Client) -> None:
    await make_tenant(admin)
    ada, bob = await make_user(admin), await make_user(admin, "Bob")
    first = await join(admin, ada, ROLE_TENANT_ADMIN)
    assert (first.user, list(first.roles)) == (ada.name, [ROLE_TENANT_ADMIN])
    await join(admin, bob, ROLE_VIEWER, ROLE_OPERATOR)
    listed = await admin.users.ListMemberships(ListMembershipsRequest(parent=ACME))
    assert [one.user for one in listed.memberships] == sorted([ada.name, bob.name])
    again = await join(admin, bob, ROLE_VIEWER)
    assert list(again.roles) == [ROLE_VIEWER]
    assert await refusal(join(admin, ada, ROLE_TENANT_ADMIN, etag="7")) is Code.CONFLICT
    await leave(admin, bob)
    await leave(admin, bob)
    listed = await admin.users.ListMemberships(ListMembershipsRequest(parent=ACME))
    assert [one.user for one in listed.memberships] == [ada.name]


async def test_memberships_that_make_no_sense_are_refused(admin: Client) -> None:
    await make_tenant(admin)
    ada = await make_user(admin)
    for roles in ((), (ROLE_PLATFORM_ADMIN,), (ROLE_SERVICE,), (ROLE_VIEWER, 99)):
        assert await refusal(join(admin, ada, *roles)) is Code.INVALID_ARGUMENT
    assert await refusal(join(admin, User(name="users/none"), ROLE_VIEWER)) is Code.NOT_FOUND
    assert await refusal(join(admin, ada, ROLE_VIEWER, tenant="tenants/none")) is Code.NOT_FOUND
    for wrong in ({"user": "users/other"}, {"group": "staff"}):
        membership = Membership(name=membership_of(ada), roles=[ROLE_VIEWER], **wrong)
        request = SetMembershipRequest(membership=membership)
        assert await refusal(admin.users.SetMembership(request)) is Code.INVALID_ARGUMENT


async def test_a_tenant_keeps_its_last_admin(admin: Client) -> None:
    await make_tenant(admin)
    ada, bob = await make_user(admin), await make_user(admin, "Bob")
    await join(admin, ada, ROLE_TENANT_ADMIN)
    assert await refusal(leave(admin, ada)) is Code.STATE_REFUSES
    assert await refusal(join(admin, ada, ROLE_VIEWER)) is Code.STATE_REFUSES
    await join(admin, bob, ROLE_TENANT_ADMIN)
    # Who is disabled administers nothing.
    await change(admin, bob, ["disabled"], disabled=True)
    assert await refusal(leave(admin, ada)) is Code.STATE_REFUSES
    await change(admin, bob, ["disabled"], disabled=False)
    await leave(admin, ada)


async def test_members_are_the_business_of_their_tenant(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    ada, bob = await make_user(admin), await make_user(admin, "Bob")
    await join(admin, ada, ROLE_TENANT_ADMIN)
    as_ada = await running.as_((await platform_token(admin, principal=ada.name)).secret)
    await join(as_ada, bob, ROLE_OPERATOR)
    assert await refusal(join(as_ada, bob, ROLE_VIEWER, tenant="tenants/other")) is Code.TENANT_FOREIGN
    assert await refusal(make_user(as_ada)) is Code.ROLE_MISSING
    as_bob = await running.as_((await platform_token(admin, principal=bob.name)).secret)
    assert await refusal(join(as_bob, bob, ROLE_TENANT_ADMIN)) is Code.ROLE_MISSING


async def test_a_token_of_a_user_carries_what_the_user_holds_now(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    ada = await make_user(admin, platform_roles=[ROLE_VIEWER])
    await join(admin, ada, ROLE_TENANT_ADMIN)
    await join(admin, ada, ROLE_VIEWER, tenant="tenants/other")
    made = await platform_token(admin, principal=ada.name, roles=[ROLE_VIEWER], title="laptop")
    assert made.api_token.name.startswith("apiTokens/")
    assert (made.api_token.principal, made.api_token.principal_kind) == (ada.name, PRINCIPAL_KIND_USER)
    now = await exchanged(running, made.secret)
    assert now.principal == ada.name
    assert list(now.platform_roles) == [ROLE_VIEWER]
    assert tenants_of(now) == {ACME: [ROLE_TENANT_ADMIN], "tenants/other": [ROLE_VIEWER]}

    await change(admin, ada, ["platform_roles"], platform_roles=[])
    await leave(admin, ada, "tenants/other")
    await admin.tenants.SuspendTenant(SuspendTenantRequest(name=ACME))
    now = await exchanged(running, made.secret)
    assert (list(now.platform_roles), tenants_of(now)) == ([], {})


async def test_a_token_of_a_tenant_ends_with_the_membership(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    ada, bob = await make_user(admin), await make_user(admin, "Bob")
    await join(admin, ada, ROLE_TENANT_ADMIN, ROLE_VIEWER)
    await join(admin, bob, ROLE_TENANT_ADMIN)
    as_ada = await running.as_((await platform_token(admin, principal=ada.name)).secret)
    secret = await tenant_token(as_ada, roles=[ROLE_TENANT_ADMIN, ROLE_VIEWER])
    assert tenants_of(await exchanged(running, secret)) == {ACME: [ROLE_TENANT_ADMIN, ROLE_VIEWER]}
    await join(admin, ada, ROLE_VIEWER)
    assert tenants_of(await exchanged(running, secret)) == {ACME: [ROLE_VIEWER]}
    await leave(admin, ada)
    assert await refusal(exchanged(running, secret)) is Code.TOKEN_INVALID


async def test_nobody_gives_a_role_that_it_or_the_user_does_not_hold(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    ada, bob = await make_user(admin), await make_user(admin, "Bob")
    await join(admin, ada, ROLE_TENANT_ADMIN)
    await join(admin, bob, ROLE_VIEWER)
    as_ada = await running.as_((await platform_token(admin, principal=ada.name)).secret)
    refused: list[dict[str, Any]] = [
        {"roles": [ROLE_INGEST]},
        {"roles": [ROLE_TENANT_ADMIN], "principal": bob.name},
        {"roles": [ROLE_VIEWER], "principal": "services/gateway"},
        {"roles": [ROLE_VIEWER], "principal": "nonsense"},
        {"roles": []},
    ]
    for fields in refused:
        assert await refusal(tenant_token(as_ada, **fields)) is Code.INVALID_ARGUMENT, fields
    # The platform's admin gives any role of a tenant, to whom the tenant gave it.
    await tenant_token(admin, roles=[ROLE_INGEST])
    await tenant_token(admin, roles=[ROLE_VIEWER], principal=bob.name)
    assert (
        await refusal(tenant_token(admin, roles=[ROLE_INGEST], principal=bob.name)) is Code.INVALID_ARGUMENT
    )
    assert await refusal(tenant_token(admin, roles=[ROLE_VIEWER], principal="users/none")) is Code.NOT_FOUND


@pytest.mark.parametrize(
    "fields",
    [
        {"roles": [ROLE_SERVICE]},
        {"roles": [ROLE_SERVICE], "principal": "services/gateway"},
        {"roles": [ROLE_INGEST], "principal": "services/gateway"},
        {"roles": []},
        {"roles": [99]},
    ],
)
async def test_no_request_makes_a_token_of_the_platforms_own_processes(
    admin: Client, fields: dict[str, Any]
) -> None:
    assert await refusal(platform_token(admin, **fields)) is Code.INVALID_ARGUMENT


async def test_a_disabled_user_is_refused_within_a_minute(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    ada = await make_user(admin)
    await join(admin, ada, ROLE_TENANT_ADMIN)
    everywhere = (await platform_token(admin, principal=ada.name)).secret
    here = await tenant_token(admin, principal=ada.name, roles=[ROLE_TENANT_ADMIN])
    ends = (await exchanged(running, everywhere)).expire_time.ToDatetime(tzinfo=UTC)
    # The verifiers' leeway is half a minute more.
    assert ends <= datetime.now(UTC) + USER_LIFETIME < datetime.now(UTC) + timedelta(seconds=30)
    await change(admin, ada, ["disabled"], disabled=True)
    for secret in (everywhere, here):
        assert await refusal(exchanged(running, secret)) is Code.TOKEN_INVALID
    await change(admin, ada, ["disabled"], disabled=False)
    await exchanged(running, here)


async def test_with_a_user_go_its_memberships_and_its_tokens(running: Running, admin: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    ada = await make_user(admin)
    for tenant in (ACME, "tenants/other"):
        await join(admin, ada, ROLE_TENANT_ADMIN, tenant=tenant)
    secret = (await platform_token(admin, principal=ada.name)).secret
    as_ada = await running.as_(secret)
    await as_ada.tenants.GetTenant(GetTenantRequest(name=ACME))
    await delete(admin, ada)
    assert await refusal(exchanged(running, secret)) is Code.TOKEN_INVALID
    assert await running.sql("select * from credentials.memberships") == []
    # What access it has left for some seconds makes no token that would outlive them.
    assert await refusal(tenant_token(as_ada, roles=[ROLE_TENANT_ADMIN])) is Code.NOT_FOUND
    kept = await running.sql("select resource from credentials.audit_records where action = 'user.delete'")
    assert [row["resource"] for row in kept] == [ada.name]


async def test_tokens_of_the_platform_are_listed_and_revoked(running: Running, admin: Client) -> None:
    made = await platform_token(admin, roles=[ROLE_PLATFORM_ADMIN], title="second admin")
    assert made.secret.startswith(made.api_token.hint)
    life = made.api_token.expire_time.ToDatetime() - made.api_token.create_time.ToDatetime()
    assert timedelta(days=89) < life < timedelta(days=91)
    second = await running.as_(made.secret)
    listed = await second.tokens.ListPlatformTokens(ListPlatformTokensRequest())
    [mine] = [token for token in listed.api_tokens if token.title == "second admin"]
    used = mine.last_used_time.ToDatetime(tzinfo=UTC)
    assert (used.minute, used.second, used.microsecond) == (0, 0, 0)
    revoke = RevokePlatformTokenRequest(name=mine.name)
    ended = await admin.tokens.RevokePlatformToken(revoke)
    assert ended.HasField("revoke_time")
    assert await admin.tokens.RevokePlatformToken(revoke) == ended
    assert await refusal(exchanged(running, made.secret)) is Code.TOKEN_INVALID
    for name in ("apiTokens/none", mine.name + "x"):
        none = RevokePlatformTokenRequest(name=name)
        assert await refusal(admin.tokens.RevokePlatformToken(none)) is Code.NOT_FOUND


async def test_one_token_is_read_by_its_name_and_in_its_tenant_only(admin: Client) -> None:
    await make_tenant(admin)
    await make_tenant(admin, "other")
    request = CreateApiTokenRequest(parent=ACME, api_token=ApiToken(roles=[ROLE_VIEWER], title="mine"))
    made = (await admin.tokens.CreateApiToken(request)).api_token
    assert await admin.tokens.GetApiToken(GetApiTokenRequest(name=made.name)) == made
    elsewhere = GetApiTokenRequest(name=made.name.replace("acme", "other"))
    assert await refusal(admin.tokens.GetApiToken(elsewhere)) is Code.NOT_FOUND
