"""Where a connection on somebody else's behalf may lead: to the public internet, and inside only by leave.

Others choose the names (tenants, plugins), and our processes stand where much can be reached. So every address
is looked at after the name was resolved and before the connection is made, and the connection goes to exactly
that address: a name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.errors import Code, Problem

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""Translators take the last four bytes for an IPv4 address (RFC 6052)."""
_NOWHERE = tuple(map(ipaddress.IPv6Network, ("::/96", "fec0::/10", "64:ff9b:1::/48")))
"""Called global by the library: IPv4-compatible and site-local addresses, long out of use, and translators
of an organisation's own, behind which anything may be."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where others may be, beside the public internet."""

    this_machine: bool = False
    networks: Sequence[Network] = ()

    def allows(self, address: IpAddress) -> bool:
        plain = _reached(address)
        if plain.is_loopback:
            return self.this_machine
        if any(plain in network for network in self.networks):
            return True
        if plain.is_multicast or any(plain in network for network in _NOWHERE):
            return False
        return bool(plain.is_global)


def _reached(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 address leads to, where it leads to one; else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def network(setting: str, text: str) -> Network:
    """A network as a setting names it."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        why = f"{text!r} is no network like 10.1.0.0/16"
        raise Problem(Code.SETTINGS_INVALID, where=f"`{setting}`", why=why) from None


async def resolve(host: str, port: int) -> list[IpAddress]:
    """Every address of the name, each once. Raises OSError where it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [ipaddress.ip_address(text) for text in texts]
