"""A root key that AWS KMS keeps and never gives away: it seals and unseals for us, over the network.

What it answers stands behind our own head (format, algorithm, fingerprint), and the place goes along as KMS's
encryption context, which it authenticates as we do: a text that was moved does not open, and CloudTrail shows
what each call was about.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from foundation.errors import Code, Problem
from services.credentials.keys.envelope import FORMAT, NAME_BYTES, Unopenable, name_of

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

T = TypeVar("T")
AWS_KMS = 2
"""The algorithm byte: AES-256-GCM as well, but behind KMS's own head."""

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 3.0, 5.0, 3
_NOT_OURS = {"InvalidCiphertextException", "IncorrectKeyException"}


class AwsKms:
    keeper = "aws-kms"

    def __init__(self, client: KMSClient, key_id: str) -> None:
        self._client = client
        self._key_id = key_id
        self._arn = ""

    @property
    def fingerprint(self) -> str:
        """Of the key's ARN, since nobody can see the key.

        The ARN and not the id that was set: an alias can be pointed at another key, and the same key can be
        named in four ways. KMS's own yearly rotation keeps the ARN, and keeps opening what it sealed before.
        """
        if not self._arn:
            raise _unreachable("it has not answered yet")
        digest = hashlib.sha256(b"tieline/aws-kms\0" + self._arn.encode()).digest()
        return digest[:NAME_BYTES].hex()

    async def prepare(self) -> None:
        if not self._arn:
            described = await _asked(self._client.describe_key(KeyId=self._key_id))
            self._arn = described["KeyMetadata"]["Arn"]

    async def seal(self, plain: bytes, where: bytes) -> bytes:
        await self.prepare()
        answer = await _asked(
            self._client.encrypt(KeyId=self._arn, Plaintext=plain, EncryptionContext=_context(where))
        )
        return bytes((FORMAT, AWS_KMS)) + bytes.fromhex(self.fingerprint) + answer["CiphertextBlob"]

    async def unseal(self, sealed: bytes, where: bytes) -> bytes:
        await self.prepare()
        if sealed[:2] != bytes((FORMAT, AWS_KMS)) or name_of(sealed).hex() != self.fingerprint:
            raise Unopenable(f"it names the key {name_of(sealed).hex()}, not {self.fingerprint}")
        blob = sealed[2 + NAME_BYTES :]
        if not blob:
            raise Unopenable("it is of no known format")
        answer = await _asked(
            self._client.decrypt(KeyId=self._arn, CiphertextBlob=blob, EncryptionContext=_context(where))
        )
        return answer["Plaintext"]


@asynccontextmanager
async def aws_kms(key_id: str, endpoint_url: str | None, setting: str) -> AsyncIterator[AwsKms]:
    """Who we are to AWS is found as AWS's own tools find it: environment, profile, instance or pod role."""
    try:
        import aioboto3  # noqa: PLC0415 - an extra: most installations keep their key in a file
        from aiobotocore.config import AioConfig  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    except ImportError:
        why = "AWS KMS needs the extra `aws`: install `tieline-suite[aws]`"
        raise Problem(Code.SETTINGS_INVALID, where=f"`{setting}`", why=why) from None
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    opening = aioboto3.Session().client(
        "kms", region_name=_region(key_id), endpoint_url=endpoint_url, config=config
    )
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(opening)
        except (BotoCoreError, ValueError) as error:
            raise Problem(Code.SETTINGS_INVALID, where=f"`{setting}`", why=str(error)) from None
        yield AwsKms(client, key_id)


def _region(key_id: str) -> str | None:
    """Where the key lives, if its name says so; otherwise AWS_REGION or the profile does."""
    parts = key_id.split(":")
    return parts[3] if len(parts) > 4 and parts[0] == "arn" else None


def _context(where: bytes) -> dict[str, str]:
    return {"tieline-place": base64.b64encode(where).decode()}


async def _asked(call: Awaitable[T]) -> T:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see `aws_kms`

    try:
        return await call
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code in _NOT_OURS:
            raise Unopenable("it was sealed with another key, for another place, or was changed") from None
        # Everything else can be mended at AWS (a permission, a disabled key, a limit), and we go on then.
        raise _unreachable(code) from None
    except (BotoCoreError, OSError, TimeoutError) as error:
        raise _unreachable(str(error) or type(error).__name__) from None


def _unreachable(why: str) -> Problem:
    return Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="AWS KMS", why=why)
