"""OauthService: a person's way through a provider's consent page."""

from __future__ import annotations

from typing import Any

from foundation.identity.names import parse
from services.credentials.credential.wire import credential_message
from services.credentials.renewal.consent import Consents, Returned
from tieline.credentials.v1 import oauth_pb2_grpc
from tieline.credentials.v1.oauth_pb2 import (
    CompleteAuthorizationRequest,
    CompleteAuthorizationResponse,
    OpenAuthorizationRequest,
    OpenAuthorizationResponse,
    StartAuthorizationRequest,
    StartAuthorizationResponse,
)


class OauthServicer(oauth_pb2_grpc.OauthServiceServicer):
    def __init__(self, consents: Consents) -> None:
        self._consents = consents

    async def StartAuthorization(  # noqa: N802
        self,
        request: StartAuthorizationRequest,
        context: Any,  # noqa: ARG002
    ) -> StartAuthorizationResponse:
        tenant, credential = parse("tenants/*/credentials/*", request.credential, "credential")
        url, until = await self._consents.start(tenant, credential, request.return_path)
        response = StartAuthorizationResponse(authorization_url=url)
        response.expire_time.FromDatetime(until)
        return response

    async def OpenAuthorization(  # noqa: N802
        self,
        request: OpenAuthorizationRequest,
        context: Any,  # noqa: ARG002
    ) -> OpenAuthorizationResponse:
        opened = await self._consents.open(request.ticket)
        response = OpenAuthorizationResponse(
            authorization_url=opened.provider_url, browser_binding=opened.browser
        )
        response.expire_time.FromDatetime(opened.until)
        return response

    async def CompleteAuthorization(  # noqa: N802
        self,
        request: CompleteAuthorizationRequest,
        context: Any,  # noqa: ARG002
    ) -> CompleteAuthorizationResponse:
        returned = Returned(request.state, request.code, request.browser_binding, request.error)
        row, return_path = await self._consents.complete(returned)
        return CompleteAuthorizationResponse(credential=credential_message(row), return_path=return_path)
