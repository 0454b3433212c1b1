"""The first bytes of TLS, read only as far as the name in them: whom the client believes to be talking to.

Nothing is decrypted. Whoever opens a tunnel to a host that is allowed and then names another one in it would
reach, behind a shared front, somebody who is not allowed.
"""

from __future__ import annotations

LONGEST = 16 * 1024
"""Of a greeting, whole records included; browsers with post-quantum keys need two."""

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST = 22, 1, 0, 0


class NotTlsError(Exception):
    """These bytes are no greeting of a TLS client."""


class _Short(Exception):  # noqa: N818 - not an error: there is more to come
    pass


def server_name(data: bytes) -> str | None:
    """The name a client greets with, empty where it names none; None: not all of the greeting is there yet."""
    try:
        hello = _Reader(_handshake(data))
        hello.skip(2 + 32)  # version, random
        hello.vector(1)  # session
        hello.vector(2)  # ciphers
        hello.vector(1)  # compression
        if not hello.left:
            return ""
        extensions = _Reader(hello.vector(2))
        while extensions.left:
            kind, body = extensions.number(2), extensions.vector(2)
            if kind == _SERVER_NAME:
                return _first_host(_Reader(body))
    except _Short:
        if len(data) > LONGEST:
            raise NotTlsError from None
        return None
    return ""


def _handshake(data: bytes) -> bytes:
    """The body of the first handshake message, gathered from as many records as it takes."""
    records, message = _Reader(data), b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        if records.left and data[records.at] != _HANDSHAKE:
            raise NotTlsError
        records.skip(1)
        if records.left and data[records.at] != 3:
            raise NotTlsError
        records.skip(2)
        message += records.vector(2)
        if message and message[0] != _CLIENT_HELLO:
            raise NotTlsError
    return message[4 : 4 + int.from_bytes(message[1:4])]


def _first_host(names: _Reader) -> str:
    listed = _Reader(names.vector(2))
    while listed.left:
        kind, name = listed.number(1), listed.vector(2)
        if kind == _HOST:
            return name.decode("ascii", errors="replace")
    return ""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def skip(self, count: int) -> None:
        self.take(count)

    def take(self, count: int) -> bytes:
        if self.left < count:
            raise _Short
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))

    def vector(self, width: int) -> bytes:
        return self.take(self.number(width))
