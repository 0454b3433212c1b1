"""What a setting may be."""

from __future__ import annotations

import ipaddress
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from foundation.store.errors import StoreMisconfigured
from foundation.store.url import DatabaseUrl


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every process's settings: a flat record with defaults, bounds and descriptions."""


class Secret:
    """Text that shows itself only to code that asks for it by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(text)

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class PostgresUrl(Secret):
    """Where a PostgreSQL is, with the password; understood before anything is opened."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            DatabaseUrl.parse(text)
        except StoreMisconfigured as error:
            raise ValueError(str(error)) from None
        return cls(text)


class NatsUrl(Secret):
    """Where a NATS is, with the password."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"nats", "tls", "ws", "wss"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            # Nothing of the text is repeated: who knows where in it the password stands.
            raise ValueError("a NATS URL is nats://host:port, or nats://user:password@host:port")
        return cls(text)


class Address:
    """`HOST:PORT`, with `[…]` around an IPv6 host; port 0 means any free one.

    A plain class, since msgspec would read a dataclass by itself and want an object with two fields.
    """

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @classmethod
    def parse(cls, text: str) -> Self:
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            ipaddress.IPv6Address(host)
        elif ":" in host:
            raise ValueError(f"an IPv6 host is written in brackets, as in [{host}]:{port}")
        if not host or any(c.isspace() or c == "/" for c in host):
            raise ValueError(f"{text!r} names no host")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (other.host, other.port) == (self.host, self.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))


def decode(kind: type, value: Any) -> Any:
    """Let msgspec read the types it does not know."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    if issubclass(kind, (Secret, Address)):
        return kind.parse(value)
    raise ValueError(f"settings have no type {kind.__name__}")
