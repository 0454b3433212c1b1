import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from foundation.process.errors import PortInUseError, ProcessError
from foundation.process.ports import Port


def listening(*options: int, number: int = 0) -> socket.socket:
    listener = socket.socket()
    for option in options:
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(("127.0.0.1", number))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def test_go_and_uvicorn_listen_beside_it() -> None:
    with Port() as port, listening(socket.SO_REUSEADDR, number=port.number):
        socket.create_connection((port.host, port.number), 2).close()


def test_again_and_again() -> None:
    """A child that died with open connections leaves some in TIME_WAIT; the next one listens at once."""
    with Port() as port:
        for _ in range(3):
            with listening(socket.SO_REUSEADDR, number=port.number) as listener:
                client = socket.create_connection((port.host, port.number), 2)
                served, _ = listener.accept()
                served.close()
                client.close()


async def test_grpc_listens_beside_it_and_again() -> None:
    with Port() as port:
        for _ in range(2):
            server = grpc.aio.server()
            assert server.add_insecure_port(port.address) == port.number
            await server.start()
            async with grpc.aio.insecure_channel(port.address) as channel:
                await asyncio.wait_for(channel.channel_ready(), 30)
            await server.stop(0)


def test_nobody_is_reached_where_nobody_listens() -> None:
    with Port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((port.host, port.number), 2)


def test_a_plain_stranger_cannot_take_it() -> None:
    with Port() as port, pytest.raises(OSError, match="in use"):
        listening(number=port.number)


@pytest.mark.parametrize(
    "options",
    [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)],
)
def test_a_port_in_use_is_told(options: tuple[int, ...]) -> None:
    with listening(*options) as stranger:
        number = stranger.getsockname()[1]
        with pytest.raises(PortInUseError) as caught:
            Port(number=number)
    assert caught.value.sentence == f"the address 127.0.0.1:{number} is in use by another process"


def test_a_foreign_address_is_told() -> None:
    with pytest.raises(ProcessError, match=r"cannot use the address 192\.0\.2\.1:0: Cannot assign"):
        Port("192.0.2.1")


def test_a_loopback_of_the_other_family() -> None:
    try:
        port = Port("::1")
    except ProcessError:
        pytest.skip("no IPv6 loopback here")
    with port:
        assert port.address == f"[::1]:{port.number}"


EXHAUST = """
import socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
from foundation.process.ports import Port
subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40031")
first, second = Port(), Port()
ours = {first.number, second.number}
assert len(ours) == 2, "two suites got the same port"
REUSE = [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)]
for options in REUSE:
    held = []
    try:
        for _ in range(64):
            stranger = socket.socket()
            for option in options:
                stranger.setsockopt(socket.SOL_SOCKET, option, 1)
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            held.append(stranger)
    except OSError:
        pass
    got = {stranger.getsockname()[1] for stranger in held}
    assert len(got) >= 14, f"only {len(got)} for {options}"
    assert not got & ours, f"{options} was given {got & ours}"
    for stranger in held:
        stranger.close()
server = socket.create_server(("127.0.0.1", 50000), backlog=100)
sources = []
try:
    for _ in range(64):
        sources.append(socket.create_connection(("127.0.0.1", 50000), 2))
except OSError:
    pass
got = {source.getsockname()[1] for source in sources}
assert len(got) >= 14, f"only {len(got)} connections"
assert not got & ours, f"a connection was given {got & ours}"
print("never")
"""


def test_the_kernel_never_hands_it_out(repository: Path) -> None:
    """In a network of its own with 32 ephemeral ports, strangers ask for any, or connect, until none is left."""
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        sys.executable,
        "-c",
        EXHAUST,
        str(repository),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no network namespace to be had: {done.stderr.strip()}")
    assert done.stdout == "never\n", done.stderr
