"""Which kind renews in which way, and how a kind is tried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from foundation.clock import Clock
from foundation.net.addresses import Reach, network
from services.credentials.renewal.asking import Mechanism, Trial
from services.credentials.renewal.aws import AwsKeys, AwsRole, TokenService
from services.credentials.renewal.github_app import GithubApp
from services.credentials.renewal.oauth_client import ClientCredentials, ServiceAccount
from services.credentials.renewal.oauth_code import OauthCode
from services.credentials.renewal.provider import Provider
from services.credentials.renewal.token_endpoint import TokenEndpoint
from services.credentials.settings import CredentialsSettings


@dataclass(frozen=True, slots=True)
class Mechanisms:
    oauth_code: OauthCode
    renewing: Mapping[str, Mechanism]
    trials: Mapping[str, Trial]


@asynccontextmanager
async def open_mechanisms(settings: CredentialsSettings, clock: Clock) -> AsyncIterator[Mechanisms]:
    reach = Reach(
        settings.allow_http_providers,
        tuple(network("provider_networks", text) for text in settings.provider_networks),
    )
    provider = Provider(reach)
    tokens, sts = TokenEndpoint(provider, clock), TokenService(settings.aws_endpoint_url)
    code, client = OauthCode(tokens), ClientCredentials(tokens)
    account, app, role = ServiceAccount(tokens), GithubApp(provider, clock), AwsRole(sts)
    try:
        yield Mechanisms(
            oauth_code=code,
            renewing={
                "OAUTH2_AUTHORIZATION_CODE": code,
                "OAUTH2_CLIENT_CREDENTIALS": client,
                "SERVICE_ACCOUNT": account,
                "GITHUB_APP": app,
                "AWS_ROLE": role,
            },
            trials={
                "OAUTH2_CLIENT_CREDENTIALS": client,
                "SERVICE_ACCOUNT": account,
                "GITHUB_APP": app,
                "AWS_ROLE": role,
                "AWS_KEYS": AwsKeys(sts),
            },
        )
    finally:
        await provider.aclose()
