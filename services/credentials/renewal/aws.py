"""AWS: a role is assumed at the token service, and its holders get the session; keys can be tried there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.credentials.credential.kinds import write_session
from services.credentials.renewal.asking import Asked, Made, Refused, Unavailable
from services.credentials.renewal.port import Validation
from tieline.credentials.v1.secrets_pb2 import AwsKeys as Keys
from tieline.credentials.v1.secrets_pb2 import AwsRole as Role

if TYPE_CHECKING:
    from types_aiobotocore_sts import STSClient

GLOBAL, HOME = "https://sts.amazonaws.com", "us-east-1"
"""The global token service signs for this region."""
SESSION_SECONDS = 3600
CONNECT_SECONDS, READ_SECONDS = 3.0, 5.0
_LATER = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable"})
_KEYS_REFUSED = frozenset(
    {"InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException"}
)


class TokenService:
    """STS, as whom the given keys say; without keys, as whom this process is to AWS."""

    def __init__(self, endpoint_url: str | None) -> None:
        self._endpoint_url = endpoint_url

    @asynccontextmanager
    async def open(self, keys: Keys | None, region: str = "") -> AsyncIterator[STSClient]:
        try:
            import aioboto3  # noqa: PLC0415 - an extra
            from aiobotocore.config import AioConfig  # noqa: PLC0415
            from botocore.exceptions import (  # noqa: PLC0415
                BotoCoreError,
                ClientError,
                NoCredentialsError,
                PartialCredentialsError,
            )
        except ImportError:
            raise Unavailable(
                "AWS needs the extra `aws` of this installation: install `tieline-suite[aws]`"
            ) from None
        session = aioboto3.Session(
            aws_access_key_id=keys.access_key_id if keys else None,
            aws_secret_access_key=keys.secret_access_key if keys else None,
            aws_session_token=(keys.session_token or None) if keys else None,
        )
        config = AioConfig(
            connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 2}
        )
        endpoint = self._endpoint_url or (None if region else GLOBAL)
        try:
            async with session.client(
                "sts", region_name=region or HOME, endpoint_url=endpoint, config=config
            ) as client:
                yield client
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _LATER or status >= 500:
                raise Unavailable("AWS asks for patience") from None
            raise Refused(_words(code)) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise Refused("it names no keys to assume it with, and this process is nobody to AWS") from None
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise Unavailable(f"AWS cannot be reached: {type(error).__name__}") from None


class AwsRole:
    def __init__(self, service: TokenService) -> None:
        self._service = service

    async def renew(self, asked: Asked) -> Made:
        role = asked.value.aws_role
        async with self._service.open(_base(role), role.region) as client:
            wanted = {
                "RoleArn": role.role_arn,
                "RoleSessionName": session_name(asked.credential.tenant, asked.credential.id),
                "DurationSeconds": SESSION_SECONDS,
            }
            if role.external_id:
                wanted["ExternalId"] = role.external_id
            answer = await client.assume_role(**wanted)  # type: ignore[arg-type]
        given = answer["Credentials"]
        fields = {
            "access_key_id": given["AccessKeyId"],
            "secret_access_key": given["SecretAccessKey"],
            "session_token": given["SessionToken"],
        }
        return Made(
            write_session({name: text.encode() for name, text in fields.items()}), given["Expiration"]
        )

    async def validate(self, asked: Asked) -> Validation:
        """Assumes it, and has nobody use what comes of that."""
        role = asked.value.aws_role
        async with self._service.open(_base(role), role.region) as client:
            wanted = {
                "RoleArn": role.role_arn,
                "RoleSessionName": session_name(asked.credential.tenant, asked.credential.id),
            }
            if role.external_id:
                wanted["ExternalId"] = role.external_id
            answer = await client.assume_role(**wanted)  # type: ignore[arg-type]
        return Validation(principal=answer["AssumedRoleUser"]["Arn"])


class AwsKeys:
    """Static keys renew never; whether they work the token service tells anybody who holds them."""

    def __init__(self, service: TokenService) -> None:
        self._service = service

    async def validate(self, asked: Asked) -> Validation:
        async with self._service.open(asked.value.aws_keys) as client:
            return Validation(principal=(await client.get_caller_identity())["Arn"])


def session_name(tenant: str, credential: str) -> str:
    """Shown in the account's CloudTrail: who had the role assumed. AWS takes 64 letters."""
    return re.sub(r"[^\w+=,.@-]", "-", f"tieline-{tenant}-{credential}", flags=re.ASCII)[:64]


def _base(role: Role) -> Keys | None:
    return role.base if role.HasField("base") else None


def _words(code: str) -> str:
    if code == "AccessDenied":
        return "AWS does not let us assume the role: does its trust policy name us, and this external id?"
    if code in _KEYS_REFUSED:
        return "AWS does not accept the keys"
    return f"AWS refuses it ({code[:60]})"
