"""A caller's own access token: exchanged when needed, shared by all its calls, renewed at half its life."""

from __future__ import annotations

import asyncio
import stat
from datetime import datetime
from pathlib import Path

from grpc.aio import Channel

from foundation.clock import Clock, SystemClock
from foundation.errors import Code, Problem
from tieline.credentials.v1 import tokens_pb2, tokens_pb2_grpc

EXCHANGE_SECONDS = 5.0


class Session:
    """Give `token` to `connect`. The channel is one to the credentials service that carries no token."""

    def __init__(self, credentials: Channel, api_token: str, clock: Clock | None = None) -> None:
        self._stub = tokens_pb2_grpc.TokenServiceStub(credentials)
        self._api_token = api_token
        self._clock = clock or SystemClock()
        self._access = ""
        self._renew_at = 0.0
        self._ends_at = 0.0
        self._exchanging = asyncio.Lock()

    async def token(self) -> str:
        if self._clock.monotonic() >= self._renew_at:
            # One exchange at a time; whoever waited for it finds a fresh token.
            async with self._exchanging:
                if self._clock.monotonic() >= self._renew_at:
                    await self._renew()
        return self._access

    async def _renew(self) -> None:
        request = tokens_pb2.ExchangeTokenRequest(api_token=self._api_token)
        try:
            answer = await self._stub.ExchangeToken(request, timeout=EXCHANGE_SECONDS)
        except Problem:
            # The second half of a token's life is there to survive an outage of the credentials service.
            if self._clock.monotonic() < self._ends_at:
                return
            raise
        self._access = answer.access_token
        expires: datetime = answer.expire_time.ToDatetime(tzinfo=self._clock.now().tzinfo)
        life = (expires - self._clock.now()).total_seconds()
        self._renew_at = self._clock.monotonic() + life / 2
        self._ends_at = self._clock.monotonic() + life


def read_token(path: str) -> str:
    """The API token that a process was given, from a file that nobody else may read."""
    file = Path(path)
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            why = f"{path} can be read by others; `chmod 600` it"
            raise Problem(Code.SETTINGS_INVALID, where="`token_file`", why=why)
        return file.read_text().strip()
    except OSError as error:
        raise Problem(Code.SETTINGS_INVALID, where="`token_file`", why=f"{path}: {error.strerror}") from error
