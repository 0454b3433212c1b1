"""What a provider may be, where it may be, and what of its answers is believed."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from foundation.clock import SystemClock
from foundation.net.addresses import Reach
from services.credentials.renewal.asking import Lost, Refused, Unavailable
from services.credentials.renewal.provider import LIMIT, Provider
from services.credentials.renewal.token_endpoint import Client, TokenEndpoint

Write = Callable[[asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def provider_that(answers: Write) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A hostile one, on this machine: reads the head of a request and answers as it likes."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await answers(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token", heads


@asynccontextmanager
async def reaching(reach: Reach) -> AsyncIterator[Provider]:
    provider = Provider(reach)
    try:
        yield provider
    finally:
        await provider.aclose()


async def ask(url: str) -> None:
    async with reaching(Reach(this_machine=True)) as provider:
        endpoint = TokenEndpoint(provider, SystemClock())
        await endpoint.ask(url, Client("us", "our secret"), {"grant_type": "client_credentials"})


def says(raw: bytes) -> Write:
    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return write


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.168.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "::",
        "::1",
        "::169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::808:808",
        "2002:a9fe:a9fe::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff0e::1",
    ],
)
def test_no_provider_is_there(address: str) -> None:
    assert not Reach().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::8.8.8.8"])
def test_a_provider_may_be_there(address: str) -> None:
    assert Reach().allows(ipaddress.ip_address(address))


def test_a_network_is_allowed_by_name_alone() -> None:
    reach = Reach(networks=[ipaddress.ip_network("10.1.0.0/16")])
    assert reach.allows(ipaddress.ip_address("10.1.2.3"))
    assert not reach.allows(ipaddress.ip_address("10.2.0.1"))
    assert not reach.allows(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "169.254.169.254"]
)
async def test_an_address_is_looked_at_after_its_name_was_resolved(host: str) -> None:
    """Whatever it is called: nothing is sent, and the words name nothing but the host."""
    async with provider_that(says(OK)) as (url, heads), reaching(Reach()) as provider:
        address = url.replace("http://127.0.0.1", f"https://{host}")
        with pytest.raises(Refused):
            await provider.ask("GET", address, {})
        assert heads == []


async def test_a_redirect_is_not_followed() -> None:
    async with provider_that(says(OK + b"{}")) as (elsewhere, followed):
        moved = f"HTTP/1.1 307 Moved\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n".encode()
        async with provider_that(says(moved)) as (url, _):
            with pytest.raises(Refused, match="we do not go"):
                await ask(url)
        assert followed == []


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"no json",
        OK + b"[" * 100_000,
        OK + b"[]",
        OK + b'{"access_token": 5}',
        OK + b'{"access_token": ""}',
        b'HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n{"access_token": "a"}',
        b"\x00\xff this is no HTTP at all\r\n\r\n",
        b"",
    ],
)
async def test_garbage_is_no_token(raw: bytes) -> None:
    async with provider_that(says(raw)) as (url, _):
        with pytest.raises((Lost, Unavailable)):
            await ask(url)


async def test_an_answer_without_end_is_left() -> None:
    left = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(OK)
            while True:
                writer.write(b"x" * LIMIT)
                await writer.drain()
        finally:
            left.set()

    async with provider_that(endless) as (url, _):
        with pytest.raises(Lost, match="more than"):
            await ask(url)
        async with asyncio.timeout(30):
            await left.wait()


async def test_an_answer_that_drips_has_an_end() -> None:
    """Each byte comes in time, the whole of them never does."""
    left = asyncio.Event()

    async def drip(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(OK)
            while not left.is_set():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass

    async with provider_that(drip) as (url, _), reaching(Reach(this_machine=True)) as provider:
        with pytest.raises(Lost, match="did not answer"):
            await provider.ask("POST", url, {}, seconds=0.5)
        left.set()
