"""How a verb talks to a running installation: three channels, as whoever holds the token."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.status import read
from foundation.errors import Code, Problem
from foundation.identity.session import Session
from foundation.rpc import Connection, connect


@dataclass(frozen=True, slots=True)
class Client:
    gateway: str
    credentials: Connection
    registry: Connection
    mapper: Connection


@asynccontextmanager
async def client(options: argparse.Namespace) -> AsyncIterator[Client]:
    """Channels to the installation that the options name; the token is `TIELINE_TOKEN` or the administrator's."""
    endpoints = read(options.endpoints, _endpoints)
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(connect(endpoints["credentials"]))
        session = Session(plain, _token(endpoints))
        channels = [
            await stack.enter_async_context(connect(endpoints[name], session.token))
            for name in ("credentials", "registry", "mapper")
        ]
        yield Client(endpoints["gateway"], *channels)


def _endpoints(document: Any) -> dict[str, str]:
    names = ("gateway", "credentials", "registry", "mapper", "admin_token_file")
    return {name: str(document[name]) for name in names}


def _token(endpoints: dict[str, str]) -> str:
    if token := os.environ.get("TIELINE_TOKEN"):
        return token
    path = Path(endpoints["admin_token_file"])
    try:
        return path.read_text().strip()
    except OSError as error:
        why = f"{path}: {error.strerror}; set TIELINE_TOKEN to a token of yours"
        raise Problem(Code.TOKEN_INVALID, why=why) from error


def need_tenant(options: argparse.Namespace) -> str:
    """The tenant that a verb is about, as a resource name."""
    if not options.tenant:
        raise Problem(Code.INVALID_ARGUMENT, field="--tenant", why="name the tenant this is about")
    return f"tenants/{options.tenant}"
