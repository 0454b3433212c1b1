"""AWS as moto plays it: a process of its own on loopback, spoken to as the real one is.

`aws` is there for the whole of a test; `Aws.start` and `Aws.stop` let it come late or go away.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aioboto3
import httpx
import pytest

from foundation.process.child import Child
from foundation.process.command import Command
from foundation.process.ports import Port
from foundation.process.testing import until

if TYPE_CHECKING:
    from types_aiobotocore_kms import KMSClient

REGION = "eu-central-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not a secret at all",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Who we are to it, found where AWS's own tools look."""


class Aws:
    def __init__(self, port: Port) -> None:
        self._port = port
        self._child: Child | None = None
        self.url = f"http://{port.address}"

    async def start(self) -> None:
        program = (sys.executable, "-m", "moto.server", "-H", self._port.host, "-p", str(self._port.number))
        self._child = await Child.spawn(Command(name="moto", argv=program, grace=1))
        await until(self._answers, 60)

    async def stop(self) -> None:
        """What it knew is gone with it."""
        if self._child is not None:
            await self._child.stop()

    async def _answers(self) -> bool:
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{self.url}/moto-api/data.json")).status_code == 200
            except httpx.TransportError:
                return False

    @asynccontextmanager
    async def kms(self) -> AsyncIterator[KMSClient]:
        async with aioboto3.Session().client("kms", endpoint_url=self.url, region_name=REGION) as client:
            yield client

    async def new_key(self, alias: str = "") -> str:
        """The ARN of a new KMS key."""
        async with self.kms() as client:
            arn = (await client.create_key())["KeyMetadata"]["Arn"]
            if alias:
                await client.create_alias(AliasName=alias, TargetKeyId=arn)
        return arn


@pytest.fixture
async def absent_aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Aws]:
    """An address where it is going to be."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with Port() as port:
        aws = Aws(port)
        yield aws
        await aws.stop()


@pytest.fixture
async def aws(absent_aws: Aws) -> Aws:
    await absent_aws.start()
    return absent_aws
