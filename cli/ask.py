"""Asking a process over HTTP how it is, with nothing but the standard library: `up` starts faster without."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

ANSWER_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    """0 where nobody answered."""
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.status == 200


async def ask(host: str, port: int, path: str = "/readyz", within: float = 3.0) -> Answer:
    try:
        async with asyncio.timeout(within):
            return await _get(host, port, path)
    except (OSError, TimeoutError, ValueError):
        return Answer(0)


async def _get(host: str, port: int, path: str) -> Answer:
    reader, writer = await asyncio.open_connection(host, port, limit=ANSWER_LIMIT)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        raw = b""
        while len(raw) < ANSWER_LIMIT and (chunk := await reader.read(ANSWER_LIMIT)):
            raw += chunk
        head, _, body = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
        return Answer(status, json.loads(body))
    finally:
        writer.close()
