"""UserService: who people are, and what they may do where."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from foundation.clock import Ids
from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc.paging import after, cut, page_size
from foundation.store.unit_of_work import Store
from services.credentials.identities.roles import OF_PEOPLE, OF_TENANTS, read_roles, write_roles
from services.credentials.identities.store import users as queries
from services.credentials.identities.store.users import MembershipRow, UserRow
from services.credentials.identities.users import UserBook
from services.credentials.updates import masked
from tieline.credentials.v1 import identities_pb2_grpc
from tieline.credentials.v1.identities_pb2 import (
    CreateUserRequest,
    DeleteMembershipRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListMembershipsRequest,
    ListMembershipsResponse,
    ListUsersRequest,
    ListUsersResponse,
    Membership,
    SetMembershipRequest,
    UpdateUserRequest,
    User,
)

_MEMBERSHIP = "tenants/*/memberships/*"


class UserServicer(identities_pb2_grpc.UserServiceServicer):
    def __init__(self, store: Store, book: UserBook, ids: Ids) -> None:
        self._store = store
        self._book = book
        self._ids = ids

    async def CreateUser(self, request: CreateUserRequest, context: Any) -> User:  # noqa: ARG002, N802
        wanted = _user_row(self._ids.new("u"), request.user, request.request_id)
        return _user(await self._book.create(wanted))

    async def GetUser(self, request: GetUserRequest, context: Any) -> User:  # noqa: ARG002, N802
        (user,) = parse("users/*", request.name, "name")
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            row = await queries.user(work, user)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"user {user}")
        return _user(row)

    async def ListUsers(self, request: ListUsersRequest, context: Any) -> ListUsersResponse:  # noqa: ARG002, N802
        size = page_size(request.page_size)
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            rows = await queries.users(work, after(request.page_token), size + 1)
        page, token = cut(rows, size, lambda row: row.id)
        return ListUsersResponse(users=map(_user, page), next_page_token=token)

    async def UpdateUser(self, request: UpdateUserRequest, context: Any) -> User:  # noqa: ARG002, N802
        (user,) = parse("users/*", request.user.name, "user.name")
        fields = masked(request.update_mask, {"title", "email", "platform_roles", "disabled"})
        wanted = _user_row(user, request.user)
        return _user(await self._book.update(user, request.user.etag, wanted, fields))

    async def DeleteUser(self, request: DeleteUserRequest, context: Any) -> Empty:  # noqa: ARG002, N802
        (user,) = parse("users/*", request.name, "name")
        await self._book.delete(user, request.etag)
        return Empty()

    async def ListMemberships(  # noqa: N802
        self,
        request: ListMembershipsRequest,
        context: Any,  # noqa: ARG002
    ) -> ListMembershipsResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        size = page_size(request.page_size)
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            rows = await queries.memberships(work, tenant, after(request.page_token), size + 1)
        page, token = cut(rows, size, lambda row: row.user_id)
        return ListMembershipsResponse(memberships=map(_membership, page), next_page_token=token)

    async def SetMembership(self, request: SetMembershipRequest, context: Any) -> Membership:  # noqa: ARG002, N802
        wanted = request.membership
        tenant, user = parse(_MEMBERSHIP, wanted.name, "membership.name")
        if wanted.user and wanted.user != f"users/{user}":
            why = f"the membership's name says users/{user}"
            raise Problem(Code.INVALID_ARGUMENT, field="membership.user", why=why)
        if wanted.group:
            why = "groups are told by the sign-on provider, not by hand"
            raise Problem(Code.INVALID_ARGUMENT, field="membership.group", why=why)
        roles = read_roles(wanted.roles, OF_TENANTS, "membership.roles")
        if not roles:
            raise Problem(Code.INVALID_ARGUMENT, field="membership.roles", why="it gives none")
        row = MembershipRow(tenant=tenant, user_id=user, roles=roles)
        return _membership(await self._book.set_membership(row, wanted.etag))

    async def DeleteMembership(self, request: DeleteMembershipRequest, context: Any) -> Empty:  # noqa: ARG002, N802
        tenant, user = parse(_MEMBERSHIP, request.name, "name")
        await self._book.delete_membership(tenant, user)
        return Empty()


def _user_row(user: str, wanted: User, request_id: str = "") -> UserRow:
    return UserRow(
        id=user,
        title=wanted.title,
        email=wanted.email,
        subject=wanted.subject,
        platform_roles=read_roles(wanted.platform_roles, OF_PEOPLE, "user.platform_roles"),
        disabled=wanted.disabled,
        request_id=request_id,
    )


def _user(row: UserRow) -> User:
    user = User(
        name=row.name,
        title=row.title,
        email=row.email,
        subject=row.subject,
        platform_roles=write_roles(row.platform_roles),
        disabled=row.disabled,
        etag=row.etag,
    )
    if row.created_at is not None:
        user.create_time.FromDatetime(row.created_at)
    return user


def _membership(row: MembershipRow) -> Membership:
    return Membership(
        name=row.name,
        user=f"users/{row.user_id}",
        roles=write_roles(row.roles),
        group=row.group_name,
        etag=row.etag,
    )
