"""The head of a request to a proxy: `CONNECT host:port`, or any method with a whole `http://` URL."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT = "CONNECT"
_HOP = {"connection", "proxy-connection", "keep-alive", "proxy-authorization", "host", "upgrade"}


class BadHeadError(Exception):
    """Nobody can tell what is asked for."""


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    host: str
    port: int
    path: str
    """Of a plain request; empty for CONNECT."""
    headers: tuple[tuple[str, str], ...]

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def credentials(self) -> tuple[str, str]:
        """Who asks, and the proof; empty where nobody says so."""
        values = [value for name, value in self.headers if name.lower() == "proxy-authorization"]
        scheme, _, encoded = (values[0] if values else "").partition(" ")
        if scheme.lower() != "basic":
            return "", ""
        try:
            user, _, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return user, secret

    def forwarded(self) -> bytes:
        """A plain request as the server itself wants it. One for each connection, so it is closed after it."""
        host = self.address.removesuffix(":80")
        kept = [f"{name}: {value}" for name, value in self.headers if name.lower() not in _HOP]
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}", *kept, "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1")


def read_head(raw: bytes) -> Head:
    first, *rest = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[0].isalpha() or not parts[2].startswith("HTTP/1."):
        raise BadHeadError
    method, target, _ = parts
    host, port, path = _authority(target) if method == CONNECT else _url(target)
    return Head(method, host, port, path, tuple(map(_header, rest)))


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name or name != name.strip() or any(mark in line for mark in "\r\n\0"):
        raise BadHeadError
    return name, value.strip()


def _authority(target: str) -> tuple[str, int, str]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "@" in host or "/" in host:
        raise BadHeadError
    return host.removeprefix("[").removesuffix("]"), int(port), ""


def _url(target: str) -> tuple[str, int, str]:
    try:
        url = urlsplit(target)
        host, port = url.hostname, url.port or 80
    except ValueError:
        raise BadHeadError from None
    if url.scheme != "http" or not host:
        raise BadHeadError
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return host, port, path
