"""TLS in front of JoinService: whoever comes may show a certificate, and need not.

gRPC for Python asks every client for a certificate or none. Who joins has none yet, who announces must show one,
and both come to one address. So TLS ends here, and the bytes go on to a server on loopback that knows, by the
port that they come from, whose certificate was shown. A port that is in nobody's book has shown none.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from foundation.clock import Clock
from foundation.errors import Code, Problem
from foundation.rpc.call import ServicerContext
from foundation.settings import Address
from services.registry.egress.piping import Streams, pipe
from services.registry.joining.authority import Authority, Identity
from services.registry.joining.names import process_of

log = structlog.get_logger(__name__)

HANDSHAKE_SECONDS = 15.0
GOODBYE_SECONDS = 0.5
CONNECTIONS = 1024
_LOOK_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Holding:
    """Whose certificate a connection showed, and how long it is good."""

    process: str
    until: datetime


class Front:
    def __init__(self, authority: Authority, clock: Clock) -> None:
        self._authority, self._clock = authority, clock
        self._holders: dict[int, Holding] = {}
        self._inner: Address | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.load_verify_locations(cadata=authority.certificate)
        self._context.set_alpn_protocols(["h2"])
        self._shown: Identity | None = None
        self._show()
        self.address = Address("127.0.0.1", 0)

    def holder(self, context: ServicerContext) -> str | None:
        """The process whose certificate made the connection of this request."""
        kind, _, rest = str(context.peer()).partition(":")
        port = rest.rpartition(":")[2]
        holding = self._holders.get(int(port)) if kind == "ipv4" and port.isdecimal() else None
        # A connection may outlive the certificate that it was made with.
        return holding.process if holding is not None and self._clock.now() < holding.until else None

    @asynccontextmanager
    async def serving(self, address: Address, inner: Address) -> AsyncIterator[None]:
        """From `address`, for whom it may concern, to the server at `inner`."""
        self._inner = inner
        try:
            server = await asyncio.start_server(
                self._accept,
                address.host,
                address.port,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except OSError as error:
            why = error.strerror or "it is not to be had"
            raise Problem(
                Code.ADDRESS_IN_USE, address=address, why=why, option="the `join_listen` setting"
            ) from error
        self.address = Address(address.host, server.sockets[0].getsockname()[1])
        renewing = asyncio.create_task(self._renew(), name="renew the certificate of the join listener")
        try:
            yield
        finally:
            renewing.cancel()
            server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(renewing, *self._open, return_exceptions=True)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._show()

    def _show(self) -> None:
        identity = self._authority.own()
        if identity is self._shown:
            return
        # OpenSSL takes files alone; this one lives for a moment, in a directory that nobody else may enter.
        with tempfile.TemporaryDirectory() as private:
            file = Path(private) / "identity.pem"
            file.touch(0o600)
            file.write_bytes(identity.key + identity.certificates)
            self._context.load_cert_chain(file)
        self._shown = identity

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            await self._forward((reader, writer))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # who leaves is told nothing
        finally:
            await _closed(writer)
            self._open.discard(task)

    async def _forward(self, client: Streams) -> None:
        if self._inner is None:
            return
        server = await asyncio.open_connection(self._inner.host, self._inner.port)
        port: int = server[1].get_extra_info("sockname")[1]
        holding = _held(client[1].get_extra_info("peercert"))
        if holding is not None:
            self._holders[port] = holding
        try:
            await pipe(client, server)
        finally:
            # Before the port is free for somebody else.
            self._holders.pop(port, None)
            server[1].close()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """TLS says goodbye, and waits for the answer no longer than this."""
    writer.close()
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
        await asyncio.sleep(0)  # what was aborted is let go of in the loop's next turn


def _held(certificate: object) -> Holding | None:
    """The one process that a certificate names; TLS has looked at who signed it."""
    if not isinstance(certificate, dict):
        return None
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    process = process_of(names[0]) if len(names) == 1 else None
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate.get("notAfter"))), UTC)
    return None if process is None else Holding(process, until)
