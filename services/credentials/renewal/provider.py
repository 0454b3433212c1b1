"""How a provider is spoken to: over TLS, at public addresses, briefly, and without following it anywhere.

A tenant chooses the URLs, and this process stands where much can be reached. So every address is looked at
after the name was resolved and before the connection is made, and the connection goes to exactly that address:
a name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore

from foundation.errors import Problem
from foundation.net.addresses import IpAddress, Reach, resolve
from services.credentials.credential.checks import Field
from services.credentials.renewal.asking import Lost, Refused, Unavailable

LIMIT = 256 * 1024
"""Bytes of an answer. Tokens are small; whoever sends more does not send a token."""
SECONDS = 10.0
"""For a request from the first packet to the last byte."""


class _ForbiddenError(Exception):
    """The name leads to where no provider is."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    def __repr__(self) -> str:
        return f"Answer({self.status}, {len(self.body)} bytes)"


class Provider:
    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=100,
            # A connection that was idle may have been closed by the other side, and nobody would know
            # whether the request on it was heard.
            max_keepalive_connections=0,
            network_backend=_Guarded(reach),
        )

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", seconds: float = SECONDS
    ) -> Answer:
        """Whatever it answers, redirects too. Raises `Trouble` where there is no answer."""
        try:
            Field("url").url(url, allow_http=self._reach.this_machine)
        except Problem:
            raise Refused(f"{_host(url)} is not an https address") from None
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(method, url, headers, body)
        except _ForbiddenError:
            raise Refused(f"{_host(url)} is not at a public address") from None
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout):
            raise Unavailable(f"{_host(url)} cannot be reached") from None
        except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException, TimeoutError):
            raise Lost(f"{_host(url)} did not answer") from None

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = {"user-agent": "tieline", "accept": "application/json", **headers}
        pairs: list[tuple[bytes | str, bytes | str]] = [*sent.items()]
        async with self._pool.stream(
            method, url, headers=pairs, content=body if method == "POST" else None
        ) as response:
            received = bytearray()
            async for chunk in response.aiter_stream():
                received += chunk
                if len(received) > LIMIT:
                    raise Lost(f"{_host(url)} answers with more than {LIMIT} bytes")
            names = {
                name.decode("latin-1").lower(): text.decode("latin-1") for name, text in response.headers
            }
            return Answer(response.status, names, bytes(received))


class _Guarded(httpcore.AsyncNetworkBackend):
    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolve(host, port)
        if not all(self._reach.allows(address) for address in addresses):
            raise _ForbiddenError
        for number, address in enumerate(addresses, 1):
            try:
                return await self._backend.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError:
                if number == len(addresses):
                    raise
        raise httpcore.ConnectError("the name leads nowhere")

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002 - as httpcore has it
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        raise _ForbiddenError

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


async def _resolve(host: str, port: int) -> list[IpAddress]:
    try:
        return await resolve(host, port)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from None


def _host(url: str) -> str:
    """The host alone: what else stands in a URL is the tenant's and need not be in our words."""
    try:
        return httpcore.URL(url).host.decode()[:200] or "the address"
    except (UnicodeError, ValueError):
        return "the address"
