"""A loader that costs little: HTTP/1.1 over connections that stay, requests made beforehand."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

BODY_BYTES = 7600
"""What a push weighs on average."""


def push_body(number: int) -> bytes:
    """A push of one commit, padded to the usual weight; every number is another."""
    sha = hashlib.sha1(f"{number}".encode(), usedforsecurity=False).hexdigest()
    url = "https://github.com/acme/shop"
    author = {"name": "Ada", "email": "ada@acme.example", "username": "ada"}
    commit = {
        "id": sha,
        "message": "change",
        "timestamp": "2026-01-01T12:00:00Z",
        "url": f"{url}/commit/{sha}",
        "author": author,
        "committer": author,
        "added": [],
        "removed": [],
        "modified": ["shop.py"],
        "distinct": True,
    }
    owner = {"login": "acme", "name": "acme", "id": 2}
    document = {
        "ref": "refs/heads/main",
        "before": "0" * 39 + "1",
        "after": sha,
        "created": False,
        "deleted": False,
        "forced": False,
        "compare": f"{url}/compare/a...b",
        "commits": [commit],
        "head_commit": commit,
        "repository": {"id": 1, "name": "shop", "full_name": "acme/shop", "html_url": url, "owner": owner},
        "pusher": {"name": "ada", "email": "ada@acme.example"},
        "sender": {"login": "ada", "id": 3, "html_url": "https://github.com/ada"},
        "padding": "",
    }
    missing = BODY_BYTES - len(json.dumps(document))
    return json.dumps(document | {"padding": "x" * max(0, missing)}).encode()


def request(hook: str, number: int, secret: bytes) -> bytes:
    """The whole request as it goes over the wire."""
    target, body = urlsplit(hook), push_body(number)
    signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
    head = (
        f"POST {target.path} HTTP/1.1\r\nhost: {target.netloc}\r\ncontent-type: application/json\r\n"
        f"x-github-delivery: bench-{number}\r\nx-github-event: push\r\n"
        f"x-hub-signature-256: sha256={signature}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(frozen=True)
class Load:
    seconds: float
    refused: int
    latencies: list[float]


async def send(hook: str, requests: Sequence[bytes], connections: int) -> Load:
    """All of them, over so many connections, each sending its next when the last was answered."""
    target = urlsplit(hook)
    waiting = iter(requests)
    latencies: list[float] = []
    refused = 0

    async def one() -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        try:
            for wire in waiting:
                began = time.perf_counter()
                writer.write(wire)
                head = await reader.readuntil(b"\r\n\r\n")
                lowered = head.lower()
                length = int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                latencies.append(time.perf_counter() - began)
                refused += not head.startswith((b"HTTP/1.1 202", b"HTTP/1.1 200"))
        finally:
            writer.close()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one())
    return Load(time.perf_counter() - began, refused, latencies)
