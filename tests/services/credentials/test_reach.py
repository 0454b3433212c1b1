"""Where providers may be: what a tenant names must not lead this process to its own neighbours."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.net.addresses import Reach
from services.credentials.renewal.asking import Lost, Refused, Unavailable
from services.credentials.renewal.provider import Provider

NEIGHBOURS = (
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "::1",
    "fe80::1",
    "fd00::1",
    "::ffff:169.254.169.254",
    "::ffff:127.0.0.1",
)


@pytest.mark.parametrize("address", NEIGHBOURS)
def test_a_neighbour_is_no_provider(address: str) -> None:
    assert not Reach().allows(ipaddress.ip_address(address))


def test_leave_is_given_for_this_machine_and_for_networks_apart() -> None:
    lenient = Reach(this_machine=True)
    assert lenient.allows(ipaddress.ip_address("::ffff:127.0.0.1"))
    assert not lenient.allows(ipaddress.ip_address("169.254.169.254"))
    inside = Reach(networks=(ipaddress.ip_network("10.1.0.0/16"),))
    assert inside.allows(ipaddress.ip_address("10.1.2.3"))
    assert inside.allows(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not inside.allows(ipaddress.ip_address("10.2.0.1"))


@given(st.ip_addresses(v=4))
def test_an_address_is_the_same_however_it_is_written(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.ip_address(f"::ffff:{address}")
    for reach in (Reach(), Reach(this_machine=True), Reach(networks=(ipaddress.ip_network("10.0.0.0/8"),))):
        assert reach.allows(mapped) == reach.allows(address)


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """A server that listens and says nothing."""
    gone = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}/token"
        gone.set()


async def test_what_was_not_sent_and_what_was_not_answered_are_told_apart(silent: str) -> None:
    provider = Provider(Reach(this_machine=True))
    with pytest.raises(Lost):
        await provider.ask("POST", silent, {}, b"x=y", seconds=0.5)
    with pytest.raises(Unavailable):
        await provider.ask("POST", "http://127.0.0.1:1/token", {}, b"x=y")
    await provider.aclose()


@pytest.mark.parametrize(
    "url",
    ["https://localhost/token", "https://127.0.0.1/token", "http://provider.example/token", "ftp://x/", "x"],
)
async def test_a_url_that_leads_inside_is_refused_unasked(url: str) -> None:
    provider = Provider(Reach())
    with pytest.raises(Refused):
        await provider.ask("POST", url, {}, b"")
    await provider.aclose()
