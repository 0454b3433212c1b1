"""Two connections become one: bytes both ways, each way ending by itself, no faster than the slower side reads."""

from __future__ import annotations

import asyncio
from contextlib import suppress

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

IDLE_SECONDS = 600.0
"""Without a byte either way: nobody waits at the other end."""
_CHUNK = 64 * 1024


async def pipe(one: Streams, other: Streams, idle: float = IDLE_SECONDS) -> None:
    """Until both sides have said all they have to say. Raises TimeoutError when neither says anything."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(idle) as patience:

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while chunk := await reader.read(_CHUNK):
                writer.write(chunk)
                await writer.drain()
                patience.reschedule(loop.time() + idle)
            if not writer.can_write_eof():  # TLS ends both ways at once
                raise ConnectionResetError
            with suppress(OSError):
                writer.write_eof()

        ways = [
            asyncio.ensure_future(carry(one[0], other[1])),
            asyncio.ensure_future(carry(other[0], one[1])),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
