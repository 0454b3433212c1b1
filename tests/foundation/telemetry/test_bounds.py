"""What a stranger may do to the HTTP server with a socket of his own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from foundation.settings import Address
from foundation.telemetry.bounds import Bounds
from foundation.telemetry.http import application, serve_http

QUICK = Bounds(head_seconds=0.3, idle_seconds=1, connections=3)


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def early(_: Request) -> PlainTextResponse:
    return PlainTextResponse("enough")


APP = application([Route("/", echo, methods=["GET", "POST"]), Route("/early", early, methods=["POST"])])


class Stranger:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """All that still comes, until the server closes or resets the connection."""
        heard = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(30):
                while chunk := await self.reader.read(65536):
                    heard += chunk
        return heard


@asynccontextmanager
async def stranger(address: Address) -> AsyncIterator[Stranger]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield Stranger(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def served(bounds: Bounds) -> AsyncIterator[Address]:
    async with serve_http(APP, Address("127.0.0.1", 0), 1, bounds) as address:
        yield address


async def answers(address: Address) -> bool:
    async with stranger(address) as somebody:
        await somebody.send(b"GET / HTTP/1.0\r\n\r\n")
        return (await somebody.rest()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % number for number in range(201)) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: %s\r\n" % (n, b"x" * 1000) for n in range(100)),
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"x" * 100_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
    ],
    ids=["one header", "the line", "many headers", "much in all", "a trailer", "a chunk's extension"],
)
async def test_a_head_beyond_its_bound_is_refused(head: bytes) -> None:
    async with served(Bounds()) as address, stranger(address) as somebody:
        await somebody.send(head)
        assert (await somebody.rest()).startswith(b"HTTP/1.1 431 ")
        assert await answers(address)


async def test_a_crowd_with_giant_headers_takes_no_memory() -> None:
    process = psutil.Process(os.getpid())
    most = before = process.memory_info().rss

    async def shout(address: Address) -> None:
        nonlocal most
        async with stranger(address) as somebody:
            with suppress(ConnectionError):
                await somebody.send(b"GET / HTTP/1.1\r\nA: ")
                for _ in range(64):
                    await somebody.send(b"x" * 65536)
                    most = max(most, process.memory_info().rss)

    async with served(Bounds()) as address:
        async with asyncio.TaskGroup() as crowd:
            for _ in range(50):
                crowd.create_task(shout(address))
        assert await answers(address)
    assert most - before < 60 * 1024 * 1024


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"\r\n",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nA: b\r\n",
        b"POST /early HTTP/1.1\r\nContent-Length: 1000\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n\r\n",
    ],
    ids=["nothing", "a line end", "a line", "headers", "a body nobody waits for", "a line end afterwards"],
)
async def test_who_trickles_a_head_is_let_go(begin: bytes) -> None:
    async with served(QUICK) as address, stranger(address) as somebody:
        await somebody.send(begin)
        gone = asyncio.create_task(somebody.rest())
        with suppress(ConnectionError):
            async with asyncio.timeout(30):
                while not gone.done():
                    await somebody.send(b"a" if b"POST" in begin else b"\r\n" * (begin in (b"", b"\r\n")))
                    await asyncio.wait([gone], timeout=0.05)
        assert b"200 OK" in await gone or b" HTTP/1.1\r\n\r\n" not in begin


async def test_a_body_may_take_longer_than_a_head() -> None:
    async with served(QUICK) as address, stranger(address) as somebody:
        await somebody.send(b"POST / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        began = asyncio.get_running_loop().time()
        sent = 0
        while asyncio.get_running_loop().time() - began < 2 * QUICK.head_seconds:
            await somebody.send(b"1\r\nx\r\n" * 1000)
            sent += 1000
            await asyncio.sleep(0)
        await somebody.send(b"400000\r\n" + b"x" * 0x400000 + b"\r\n0\r\n\r\n")
        assert (await somebody.rest()).endswith(str(sent + 0x400000).encode())


async def test_an_idle_connection_is_let_go() -> None:
    async with served(QUICK) as address, stranger(address) as somebody:
        await somebody.send(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
        assert (await somebody.rest()).count(b"200 OK") == 2


async def test_connections_are_counted() -> None:
    async with served(Bounds(connections=3)) as address:
        async with stranger(address) as one, stranger(address), stranger(address):
            async with stranger(address) as fourth:
                assert (await fourth.rest()).startswith(b"HTTP/1.1 503 ")
            await one.send(b"GET / HTTP/1.0\r\n\r\n")
            assert b"200 OK" in await one.rest()
        async with asyncio.timeout(30):
            while not await answers(address):
                await asyncio.sleep(0)
