"""The way out of every plugin: a proxy on this machine that knows who asks and what its manifest names.

A plugin finds it in `HTTPS_PROXY`, with credentials of this one launch. What it may not reach is refused and
kept. What it may reach is resolved here, once; every address is looked at (`foundation/net/addresses.py`), and
the connection goes to one that was looked at. A tunnel carries TLS to the host it was opened for, by the name in
its greeting, unless the manifest says `tunnel`.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from foundation.clock import Clock, SystemClock
from foundation.net.addresses import IpAddress, Reach, resolve
from services.registry.egress.allowing import AllowList, Rule, is_address, normal
from services.registry.egress.head import CONNECT, BadHeadError, Head, read_head
from services.registry.egress.hello import NotTlsError, server_name
from services.registry.egress.piping import Streams, pipe
from services.registry.egress.refusals import Refusals
from tieline.plugin.v1.manifest_pb2 import Egress

log = structlog.get_logger(__name__)

HEAD_BYTES = 16 * 1024
HEAD_SECONDS = 15.0
CONNECT_SECONDS = 15.0
CONNECTIONS = 128
"""Open at a time for one launch; calls in flight are far fewer."""
STRANGERS = 512
"""Open at a time by the door of all who are not confined, without having said who they are."""
TOLD = 20
"""Refusals of one launch that are logged; after these only the 32nd, the 64th, and so on."""

NOT_NAMED = "its manifest does not name it"
INNER = "it is no public address"
NOT_TLS = "it is not TLS, and the manifest does not say `tunnel`"
OTHER_NAME = "its TLS names another host"
PLAIN = "plain HTTP is not named by its manifest"

Resolve = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
Dial = Callable[[IpAddress, int], Awaitable[Streams]]


async def dial(address: IpAddress, port: int) -> Streams:
    return await asyncio.open_connection(str(address), port)


class RefusedError(Exception):
    """Why a request goes no further: an HTTP status and its words."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@dataclass(slots=True, eq=False)
class Pass:
    """The leave of one launch: what it may reach, by which credentials, and what it was refused."""

    plugin: str
    name: str
    secret: str
    port: int
    allowed: AllowList
    refused: Refusals
    connections: int = 0

    def __repr__(self) -> str:
        return f"Pass({self.name})"

    def environment(self, port: int = 0) -> dict[str, str]:
        """For the process. `port` is where it finds the proxy, if not where all others do."""
        url = f"http://{self.name}:{self.secret}@127.0.0.1:{port or self.port}"
        names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
        proxies = {name: url for upper in names for name in (upper, upper.lower())}
        return {**proxies, "NO_PROXY": "", "no_proxy": ""}

    def refuse(self, address: str, why: str) -> RefusedError:
        refusal = self.refused.add(address, why)
        total = self.refused.total
        # The first, second, fourth time: a loop does not fill the log, nor does one through all names there are.
        if total.bit_count() == 1 or (total <= TOLD and refusal.count.bit_count() == 1):
            log.warning(
                "a plugin may not go there",
                plugin=self.plugin,
                address=refusal.address,
                why=why,
                count=refusal.count,
            )
        return RefusedError(403, why)


@dataclass(slots=True, eq=False)
class Door:
    """One listener. Who fills it with silence shuts out nobody who comes by another."""

    only: Pass | None = None
    """The launch that it is for; None: for all that are not confined."""
    strangers: int = 0

    @contextmanager
    def stranger(self) -> Iterator[None]:
        if self.strangers >= (CONNECTIONS if self.only else STRANGERS):
            raise RefusedError(503, "too many connections")
        self.strangers += 1
        try:
            yield
        finally:
            self.strangers -= 1


class EgressProxy:
    def __init__(self, reach: Reach, clock: Clock, resolver: Resolve, dialler: Dial) -> None:
        self.port = 0
        self._reach, self._clock = reach, clock
        self._resolve, self._dial = resolver, dialler
        self._passes: dict[str, Pass] = {}
        self._open: dict[asyncio.Task[None], Pass | None] = {}

    def admit(self, plugin: str, egress: Sequence[Egress]) -> Pass:
        name = f"{plugin}-{secrets.token_hex(4)}"
        secret = secrets.token_urlsafe(24)
        self._passes[name] = Pass(plugin, name, secret, self.port, AllowList(egress), Refusals(self._clock))
        return self._passes[name]

    def dismiss(self, leave: Pass) -> None:
        """Its launch is over: what it left open is closed."""
        self._passes.pop(leave.name, None)
        for task, owner in self._open.items():
            if owner is leave:
                task.cancel()

    async def listen(self, listener: socket.socket | None = None, only: Pass | None = None) -> asyncio.Server:
        """Serve on this machine, or on a socket that was made elsewhere (in a network of its own) for one launch."""
        accept = partial(self._accept, Door(only))
        if listener is None:
            return await asyncio.start_server(accept, "127.0.0.1", 0, limit=HEAD_BYTES)
        return await asyncio.start_server(accept, sock=listener, limit=HEAD_BYTES)

    async def aclose(self) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # never: we run in the task that the server made for us
            return
        self._open[task] = None
        try:
            await self._serve(door, (reader, writer), task)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who leaves in the middle, or says nothing, is told nothing
        except asyncio.CancelledError:  # the server's task, ended by us: nobody awaits it
            pass
        finally:
            self._open.pop(task, None)
            writer.close()

    async def _serve(self, door: Door, client: Streams, task: asyncio.Task[None]) -> None:
        try:
            with door.stranger():
                async with asyncio.timeout(HEAD_SECONDS):
                    head = read_head(await client[0].readuntil(b"\r\n\r\n"))
            leave = self._identify(head, door)
            self._open[task] = leave
            with _counted(leave):
                await self._forward(head, leave, client)
        except BadHeadError:
            await _answer(client[1], 400, "no request that a proxy takes")
        except RefusedError as refused:
            await _answer(client[1], refused.status, refused.why)

    def _identify(self, head: Head, door: Door) -> Pass:
        name, secret = head.credentials()
        leave = self._passes.get(name)
        if leave is None or not hmac.compare_digest(leave.secret.encode(), secret.encode()):
            raise RefusedError(407, "credentials of a launch are needed")
        if door.only not in (None, leave):
            raise RefusedError(407, "these credentials are another launch's")
        return leave

    async def _forward(self, head: Head, leave: Pass, client: Streams) -> None:
        rule = leave.allowed.find(head.host, head.port)
        if rule is None:
            raise leave.refuse(head.address, NOT_NAMED)
        if head.method != CONNECT and not rule.plain:
            raise leave.refuse(head.address, PLAIN)
        server = await self._connect(head, rule, leave)
        try:
            if head.method == CONNECT:
                client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                first = b"" if rule.tunnel else await _greeting(head, leave, client[0])
            else:
                first = head.forwarded()
            server[1].write(first)
            await pipe(client, server)
        finally:
            server[1].close()

    async def _connect(self, head: Head, rule: Rule, leave: Pass) -> Streams:
        reach = Reach(self._reach.this_machine and rule.chosen, self._reach.networks)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                addresses = await self._resolve(head.host, head.port)
                if not all(map(reach.allows, addresses)):
                    raise leave.refuse(head.address, INNER)
                return await self._first(addresses, head.port)
        except (OSError, TimeoutError):
            raise RefusedError(502, "the host cannot be reached") from None

    async def _first(self, addresses: Sequence[IpAddress], port: int) -> Streams:
        failure = OSError("the name leads nowhere")
        for address in addresses:
            try:
                return await self._dial(address, port)
            except OSError as error:
                failure = error
        raise failure


async def _greeting(head: Head, leave: Pass, reader: asyncio.StreamReader) -> bytes:
    """The client's first bytes, once they are known to be TLS for this very host."""
    data = b""
    async with asyncio.timeout(HEAD_SECONDS):
        while True:
            try:
                name = server_name(data)
            except NotTlsError:
                raise _cut(leave, head, NOT_TLS) from None
            if name is not None:
                break
            chunk = await reader.read(HEAD_BYTES)
            if not chunk:
                raise _cut(leave, head, NOT_TLS) if data else ConnectionResetError
            data += chunk
    wanted = "" if is_address(head.host) else normal(head.host)  # an address is never named in a greeting
    if normal(name) != wanted:
        raise _cut(leave, head, OTHER_NAME)
    return data


def _cut(leave: Pass, head: Head, why: str) -> ConnectionResetError:
    """The tunnel stands already, so no answer can be given in it: it is closed."""
    leave.refuse(head.address, why)
    return ConnectionResetError(why)


@contextmanager
def _counted(leave: Pass) -> Iterator[None]:
    if leave.connections >= CONNECTIONS:
        raise RefusedError(503, "too many connections")
    leave.connections += 1
    try:
        yield
    finally:
        leave.connections -= 1


_WORDS: Mapping[int, str] = {407: 'Proxy-Authenticate: Basic realm="tieline"\r\n'}


async def _answer(writer: asyncio.StreamWriter, status: int, why: str) -> None:
    body = f"Tieline: {why}\n"
    head = f"HTTP/1.1 {status} {why}\r\n{_WORDS.get(status, '')}Content-Type: text/plain\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    await writer.drain()


@asynccontextmanager
async def open_egress(
    reach: Reach,
    *,
    clock: Clock | None = None,
    resolver: Resolve = resolve,
    dialler: Dial = dial,
) -> AsyncIterator[EgressProxy]:
    proxy = EgressProxy(reach, clock or SystemClock(), resolver, dialler)
    async with await proxy.listen() as server:
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            await proxy.aclose()
