"""The platform's public keys, held in memory and kept fresh by a task of their own."""

from __future__ import annotations

import asyncio
import json
from typing import Self

import structlog
from grpc.aio import Channel
from joserfc.jwk import OKPKey

from foundation.clock.tasks import end, woken
from foundation.errors import Code, Problem
from tieline.credentials.v1 import tokens_pb2, tokens_pb2_grpc

log = structlog.get_logger(__name__)

RETRY_SECONDS = 0.2
"""Between two looks while nobody answers, and between two looks for an unknown key."""


class RemoteKeys:
    """`async with RemoteKeys(channel) as keys`: trusts nothing until the credentials service has answered."""

    def __init__(self, credentials: Channel) -> None:
        self._stub = tokens_pb2_grpc.TokenServiceStub(credentials)
        self._keys: dict[str, OKPKey] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def key(self, kid: str) -> OKPKey | None:
        found = self._keys.get(kid)
        if found is None:
            # A key may have been added since; whoever asks again in a moment finds it.
            self._wanted.set()
        return found

    async def check(self) -> None:
        """For readiness: without keys every token would be refused."""
        if not self._keys:
            why = "its signing keys are not known yet"
            raise Problem(Code.DEPENDENCY_UNAVAILABLE, dependency="credentials", why=why)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_fresh(), name="keep signing keys fresh")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)

    async def _keep_fresh(self) -> None:
        while True:
            pause = RETRY_SECONDS
            try:
                pause = await self._refresh()
            except (Problem, ValueError) as error:
                log.debug("signing keys not refreshed", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
            await woken(self._wanted, pause)

    async def _refresh(self) -> float:
        answer = await self._stub.GetSigningKeys(tokens_pb2.GetSigningKeysRequest(), timeout=5.0)
        keys = [OKPKey.import_key(item) for item in json.loads(answer.jwks)["keys"]]
        if not keys:
            raise ValueError("there are no signing keys yet")
        self._keys = {key.thumbprint(): key for key in keys}
        return max(RETRY_SECONDS, answer.max_age.ToTimedelta().total_seconds())
