"""OAuth 2 with a person's consent: a refresh takes the old tokens' place, whether or not the provider rotates."""

from __future__ import annotations

from services.credentials.renewal.asking import Asked, Made, Refused
from services.credentials.renewal.token_endpoint import Client, TokenEndpoint, Tokens
from tieline.credentials.v1.secrets_pb2 import Oauth2AuthorizationCode, SecretValue


class OauthCode:
    def __init__(self, tokens: TokenEndpoint) -> None:
        self._tokens = tokens

    async def renew(self, asked: Asked) -> Made:
        part = asked.value.oauth2_authorization_code
        if not part.refresh_token:
            raise Refused("nobody has consented yet, or the provider gave no refresh token", consent=True)
        form = {"grant_type": "refresh_token", "refresh_token": part.refresh_token}
        return self._made(part, await self._tokens.ask(part.token_url, client_of(part), form))

    async def exchange(
        self, part: Oauth2AuthorizationCode, code: str, verifier: str, redirect_uri: str
    ) -> Made:
        """What a consent has brought back, for tokens. What an earlier consent gave is not kept."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        tokens = await self._tokens.ask(part.token_url, client_of(part), form)
        bare = Oauth2AuthorizationCode()
        bare.CopyFrom(part)
        bare.ClearField("refresh_token")
        return self._made(bare, tokens)

    def _made(self, part: Oauth2AuthorizationCode, tokens: Tokens) -> Made:
        value = SecretValue(oauth2_authorization_code=part)
        value.oauth2_authorization_code.access_token = tokens.access
        if tokens.refresh:
            value.oauth2_authorization_code.refresh_token = tokens.refresh
        ends = self._tokens.clock.now() + tokens.life if tokens.life else None
        return Made(value.SerializeToString(), ends, tokens.scopes)


def client_of(part: Oauth2AuthorizationCode) -> Client:
    return Client(part.client_id, part.client_secret)
