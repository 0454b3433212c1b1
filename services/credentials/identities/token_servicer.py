"""TokenService: what callers prove themselves with."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.identity.names import parse
from foundation.rpc.paging import after, cut, page_size
from foundation.store.unit_of_work import Store
from services.credentials.identities.api_tokens import Exchange
from services.credentials.identities.issuing import Issuing
from services.credentials.identities.roles import write_roles
from services.credentials.identities.signing import LIFETIME, MAX_AGE, USER_LIFETIME, SigningKeys
from services.credentials.identities.store import tokens as queries
from services.credentials.identities.store.tokens import PLATFORM, TokenRow
from tieline.common.v1 import options_pb2 as contract
from tieline.credentials.v1 import tokens_pb2_grpc
from tieline.credentials.v1.tokens_pb2 import (
    ApiToken,
    CreateApiTokenRequest,
    CreateApiTokenResponse,
    CreatePlatformTokenRequest,
    CreatePlatformTokenResponse,
    ExchangeTokenRequest,
    ExchangeTokenResponse,
    GetApiTokenRequest,
    GetSigningKeysRequest,
    GetSigningKeysResponse,
    ListApiTokensRequest,
    ListApiTokensResponse,
    ListPlatformTokensRequest,
    ListPlatformTokensResponse,
    RevokeApiTokenRequest,
    RevokePlatformTokenRequest,
    RotateSigningKeyRequest,
    RotateSigningKeyResponse,
)

_NAME = "tenants/*/apiTokens/*"


class TokenServicer(tokens_pb2_grpc.TokenServiceServicer):
    def __init__(
        self, store: Store, issuing: Issuing, exchange: Exchange, keys: SigningKeys, clock: Clock
    ) -> None:
        self._store = store
        self._issuing = issuing
        self._exchange = exchange
        self._keys = keys
        self._clock = clock

    async def CreateApiToken(  # noqa: N802
        self,
        request: CreateApiTokenRequest,
        context: Any,  # noqa: ARG002
    ) -> CreateApiTokenResponse:
        (tenant,) = parse("tenants/*", request.parent, "parent")
        row, secret = await self._issuing.for_tenant(tenant, request.api_token)
        return CreateApiTokenResponse(api_token=_token(row), secret=secret)

    async def GetApiToken(self, request: GetApiTokenRequest, context: Any) -> ApiToken:  # noqa: ARG002, N802
        tenant, token = parse(_NAME, request.name, "name")
        async with self._store.unit_of_work(tenants=[tenant], read_only=True) as work:
            row = await queries.token(work, f"tenants/{tenant}", token)
        if row is None:
            raise Problem(Code.NOT_FOUND, what=f"token {token} of tenant {tenant}")
        return _token(row)

    async def ListApiTokens(self, request: ListApiTokensRequest, context: Any) -> ListApiTokensResponse:  # noqa: ARG002, N802
        (tenant,) = parse("tenants/*", request.parent, "parent")
        page, token = await self._page(f"tenants/{tenant}", request)
        return ListApiTokensResponse(api_tokens=page, next_page_token=token)

    async def RevokeApiToken(self, request: RevokeApiTokenRequest, context: Any) -> ApiToken:  # noqa: ARG002, N802
        tenant, token = parse(_NAME, request.name, "name")
        return _token(await self._issuing.revoke(token, tenant))

    async def CreatePlatformToken(  # noqa: N802
        self,
        request: CreatePlatformTokenRequest,
        context: Any,  # noqa: ARG002
    ) -> CreatePlatformTokenResponse:
        row, secret = await self._issuing.for_platform(request.api_token)
        return CreatePlatformTokenResponse(api_token=_token(row), secret=secret)

    async def ListPlatformTokens(  # noqa: N802
        self,
        request: ListPlatformTokensRequest,
        context: Any,  # noqa: ARG002
    ) -> ListPlatformTokensResponse:
        page, token = await self._page(PLATFORM, request)
        return ListPlatformTokensResponse(api_tokens=page, next_page_token=token)

    async def RevokePlatformToken(self, request: RevokePlatformTokenRequest, context: Any) -> ApiToken:  # noqa: ARG002, N802
        (token,) = parse("apiTokens/*", request.name, "name")
        return _token(await self._issuing.revoke(token))

    async def ExchangeToken(self, request: ExchangeTokenRequest, context: Any) -> ExchangeTokenResponse:  # noqa: ARG002, N802
        now = self._clock.now()
        principal, is_user = await self._exchange.authenticate(request.api_token, now)
        lifetime = USER_LIFETIME if is_user else LIFETIME
        answer = ExchangeTokenResponse(
            access_token=self._keys.sign(principal, lifetime),
            principal=principal.name,
            platform_roles=write_roles(principal.platform_roles),
        )
        answer.expire_time.FromDatetime(now + lifetime)
        for tenant, roles in principal.tenant_roles.items():
            answer.tenants.add(tenant=f"tenants/{tenant}", roles=write_roles(roles))
        return answer

    async def GetSigningKeys(self, request: GetSigningKeysRequest, context: Any) -> GetSigningKeysResponse:  # noqa: ARG002, N802
        await self._keys.check()
        max_age = Duration()
        max_age.FromTimedelta(MAX_AGE)
        return GetSigningKeysResponse(jwks=self._keys.jwks, max_age=max_age)

    async def RotateSigningKey(  # noqa: N802
        self,
        request: RotateSigningKeyRequest,
        context: Any,  # noqa: ARG002
    ) -> RotateSigningKeyResponse:
        await self._keys.check()
        made = await self._keys.rotate(request.current_kid)
        answer = RotateSigningKeyResponse(kid=made.kid)
        answer.sign_time.FromDatetime(made.signs_at)
        return answer

    async def _page(
        self, owner: str, request: ListApiTokensRequest | ListPlatformTokensRequest
    ) -> tuple[list[ApiToken], str]:
        size = page_size(request.page_size)
        async with self._store.unit_of_work(tenants=(), read_only=True) as work:
            rows = await queries.tokens(work, owner, after(request.page_token), size + 1)
        page, token = cut(rows, size, lambda row: row.id)
        return list(map(_token, page)), token


def _token(row: TokenRow) -> ApiToken:
    token = ApiToken(
        name=row.name,
        title=row.title,
        principal=row.principal,
        principal_kind=contract.PrincipalKind.Value(f"PRINCIPAL_KIND_{row.kind.upper()}"),
        roles=write_roles(row.roles),
        hint=row.hint,
    )
    for field, at in (
        ("create_time", row.created_at),
        ("expire_time", row.expires_at),
        ("last_used_time", row.last_used_at),
        ("revoke_time", row.revoked_at),
    ):
        if at is not None:
            getattr(token, field).FromDatetime(at)
    return token
