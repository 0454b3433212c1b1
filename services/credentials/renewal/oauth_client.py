"""OAuth 2 between machines, and service accounts: each token is a session of its own."""

from __future__ import annotations

import json
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from services.credentials.credential.kinds import write_session
from services.credentials.renewal.asking import Asked, Made, Refused
from services.credentials.renewal.port import Validation
from services.credentials.renewal.token_endpoint import Client, TokenEndpoint, Tokens

ASSERTION_SECONDS = 600
CLOCKS_APART = 60


class ClientCredentials:
    """RFC 6749 §4.4, with an audience where the provider wants one."""

    def __init__(self, tokens: TokenEndpoint) -> None:
        self._tokens = tokens

    async def renew(self, asked: Asked) -> Made:
        return _session("access_token", await self._ask(asked), self._tokens)

    async def validate(self, asked: Asked) -> Validation:
        wanted = asked.value.oauth2_client_credentials.scopes
        return _found(await self._ask(asked), list(wanted))

    async def _ask(self, asked: Asked) -> Tokens:
        part = asked.value.oauth2_client_credentials
        form = {"grant_type": "client_credentials"}
        if part.scopes:
            form["scope"] = " ".join(part.scopes)
        if part.audience:
            form["audience"] = part.audience
        return await self._tokens.ask(part.token_url, Client(part.client_id, part.client_secret), form)


class ServiceAccount:
    """A signed assertion in exchange for a token (RFC 7523), as Google's service accounts do it."""

    def __init__(self, tokens: TokenEndpoint) -> None:
        self._tokens = tokens

    async def renew(self, asked: Asked) -> Made:
        return _session("token", await self._ask(asked), self._tokens)

    async def validate(self, asked: Asked) -> Validation:
        document = json.loads(asked.value.service_account.document)
        await self._ask(asked)
        return Validation(principal=str(document["client_email"]))

    async def _ask(self, asked: Asked) -> Tokens:
        part = asked.value.service_account
        document = json.loads(part.document)
        url, now = document["token_uri"], int(self._tokens.clock.now().timestamp())
        claims = {
            "iss": document["client_email"],
            "scope": " ".join(part.scopes),
            "aud": url,
            "iat": now - CLOCKS_APART,
            "exp": now + ASSERTION_SECONDS - CLOCKS_APART,
        }
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": _signed(document, claims),
        }
        return await self._tokens.ask(url, None, form)


def _signed(document: dict[str, Any], claims: dict[str, Any]) -> str:
    header = {"alg": "RS256"}
    if document.get("private_key_id"):
        header["kid"] = str(document["private_key_id"])
    pem = document["private_key"]
    try:
        return jwt.encode(header, claims, RSAKey.import_key(pem), algorithms=["RS256"])
    except (JoseError, ValueError, TypeError):
        pass
    try:
        return jwt.encode({**header, "alg": "ES256"}, claims, ECKey.import_key(pem), algorithms=["ES256"])
    except (JoseError, ValueError, TypeError):
        raise Refused("its private key signs neither RS256 nor ES256") from None


def _session(field: str, tokens: Tokens, endpoint: TokenEndpoint) -> Made:
    ends = endpoint.clock.now() + tokens.life if tokens.life else None
    return Made(write_session({field: tokens.access.encode()}), ends, tokens.scopes)


def _found(tokens: Tokens, wanted: list[str]) -> Validation:
    granted = wanted if tokens.scopes is None else list(tokens.scopes)
    return Validation("", granted, [scope for scope in wanted if scope not in granted])
