"""An HTTP server as an object with an owner: uvicorn without its signal handlers and its own exit."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from foundation.clock import RandomIds
from foundation.errors import Code, Problem
from foundation.errors.http import respond
from foundation.settings.types import Address
from foundation.telemetry.bounds import BoundedProtocol, Bounds

log = structlog.get_logger(__name__)

_BOUNDS = Bounds()


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """An app whose every refusal is a problem of the catalogue."""
    app = Starlette(
        routes=list(routes),
        exception_handlers={Problem: respond, HTTPException: _respond_http, Exception: _respond_unexpected},
    )
    # What is not there is not there: no stranger is sent elsewhere with what they posted.
    app.router.redirect_slashes = False
    return app


@asynccontextmanager
async def serve_http(
    app: Starlette, address: Address, drain: float, bounds: Bounds = _BOUNDS
) -> AsyncIterator[Address]:
    """Serve until the block ends; yields the address really bound."""
    listener = listen(address)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            http=cast("Any", partial(BoundedProtocol, bounds)),
            timeout_keep_alive=max(1, round(bounds.idle_seconds)),
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(drain)),
        )
    )
    serving = asyncio.create_task(server._serve([listener]), name=f"http {host}:{port}")  # noqa: SLF001 - serve() takes the process's signals
    try:
        yield Address(host, port)
    finally:
        server.end()
        await serving
        listener.close()


class _Server(uvicorn.Server):
    """Ends at once when it is told to, where uvicorn looks ten times a second and waits for whoever is not there."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # what it does each second: the date in its answers
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.connections or self.server_state.tasks:
            return await super().shutdown(sockets)
        for listening in self.servers:
            listening.close()
        return None


def listen(address: Address) -> socket.socket:
    """A listening socket that may share its port with our own reservation of it, and with nobody else."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        why = (
            "another process listens there"
            if error.errno == errno.EADDRINUSE
            else os.strerror(error.errno or 0)
        )
        raise Problem(
            Code.ADDRESS_IN_USE, address=address, why=why, option="the `http` setting (--http)"
        ) from error
    listener.setblocking(False)  # noqa: FBT003 - its only parameter
    return listener


def _respond_unexpected(request: Request, error: Exception) -> Response:
    """Say nothing of the inside: the log holds it under the reference that the caller gets."""
    reference = RandomIds().new("ref")
    log.error("request failed", path=request.url.path, reference=reference, exc_info=error)
    return respond(request, Problem(Code.INTERNAL, reference=reference))


def _respond_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        problem = Problem(Code.HTTP_METHOD_NOT_ALLOWED, path=request.url.path, method=request.method)
    elif status == 404:
        problem = Problem(Code.NOT_FOUND, what=f"page {request.url.path}")
    else:
        problem = Problem(Code.INVALID_ARGUMENT, field="request", why=f"HTTP status {status}")
    return respond(request, problem)
