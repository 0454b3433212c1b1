"""What one HTTP connection, and all of them together, may take before a request has proved to be one.

uvicorn bounds neither the bytes nor the time of a head, and everything outside can reach that. The body is
not looked at here: the application reads it, and knows how long it may be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_PIECE = 16 * 1024
"""Bytes that the parser is given at once, which is also how far `head` may be overrun."""


@dataclass(frozen=True, slots=True)
class Bounds:
    head: int = 64 * 1024
    """Bytes of a request line with its headers, of trailers, and of the framing between parts of a body."""
    headers: int = 200
    head_seconds: float = 10.0
    """From the connection, or the first byte after an answer, to a whole head."""
    idle_seconds: float = 15.0
    """Between two requests."""
    connections: int = 800
    """Fewer than the files that a process may usually have open."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What goes beyond the bounds is refused, and the connection closed."""

    def __init__(self, bounds: Bounds, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._unproductive = 0  # bytes since a message began or a part of a body came
        self._progress = False
        self._beyond = ""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections.")
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._awaits_a_request():
            self._expect_head()
        for start in range(0, len(data), _PIECE):
            if self.transport.is_closing():
                return
            self._progress = False
            piece = data[start : start + _PIECE]
            super().data_received(piece)
            self._unproductive = 0 if self._progress else self._unproductive + len(piece)
            if self._unproductive > self._bounds.head:
                self._refuse_head()

    def on_message_begin(self) -> None:
        self._progress = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self._bounds.headers:
            self._beyond = f"more than {self._bounds.headers} headers"
            raise ValueError(self._beyond)  # the parser ends here, and has the request refused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if self._beyond:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large.")

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        if self.transport.is_closing():
            return
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: text/plain; charset=utf-8",
            f"content-length: {len(sentence)}",
            "connection: close",
            "",
            sentence,
        )
        self.transport.write("\r\n".join(lines).encode("ascii"))
        self.transport.close()

    def _awaits_a_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self._bounds.head_seconds, self.timeout_keep_alive_handler)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
