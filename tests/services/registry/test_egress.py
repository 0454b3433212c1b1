"""The way out of a plugin: to the hosts of its manifest, at addresses that are no neighbours of ours."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from foundation.clock import SteeredClock
from foundation.net.addresses import IpAddress, Reach, resolve
from foundation.process.testing import until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections
from services.registry.egress import proxy as subject
from services.registry.egress.allowing import AllowList
from services.registry.egress.hello import LONGEST, NotTlsError, server_name
from services.registry.egress.piping import Streams
from services.registry.egress.proxy import EgressProxy, Pass, Resolve, dial, open_egress
from services.registry.egress.refusals import KEPT, Refusals
from services.registry.host.sandbox import Enclosure, Sandbox
from tests.services.registry.plugins import CODE, group, hosting, make_plugin, served, titles
from tests.services.registry.tls import make_certificate, provider
from tieline.plugin.v1.manifest_pb2 import Egress

CALLING = CODE.replace("import os,", "import httpx, os,").replace(
    'case "wait"',
    """case url if url.startswith("http"):
                try:
                    return Event(
                        type="{name}.said", title=httpx.get(url, timeout=20).text, external_key="k",
                        category=Category.SYSTEM,
                    )
                except httpx.HTTPError as error:
                    return Event(
                        type="{name}.said", title=f"{{type(error).__name__}}: {{error}}", external_key="k",
                        category=Category.SYSTEM,
                    )
            case "wait\"""",
)

REBINDING = "rebinding.example"
PUBLIC = ipaddress.ip_address("93.184.215.14")
EGRESS = """
[[egress]]
host = "rebinding.example"
[[egress]]
host = "169.254.169.254"
ports = [80]
[[egress]]
host = "${{settings:/word}}"
""".replace("{{", "{").replace("}}", "}")


class Names:
    """Answers for names, one address for each question; the last stays. Remembers who was dialled."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self._answers = {name.replace("_", "."): list(texts) for name, texts in answers.items()}
        self.dialled: list[IpAddress] = []

    async def resolve(self, host: str, port: int) -> Sequence[IpAddress]:
        answers = self._answers.get(host)
        if answers is None:
            return await resolve(host, port)
        text = answers.pop(0) if len(answers) > 1 else answers[0]
        return [ipaddress.ip_address(text)]

    async def dial(self, address: IpAddress, port: int) -> Streams:
        self.dialled.append(address)
        if not address.is_loopback:
            raise ConnectionRefusedError  # a test reaches nobody else's machine
        return await dial(address, port)


@asynccontextmanager
async def calling(
    tmp_path: Path, reach: Reach, names: Names, settings: str
) -> AsyncIterator[tuple[Callable[[str], asyncio.Future[str]], Enclosure]]:
    make_plugin(tmp_path / "plugins", "caller", rest=EGRESS, code=CALLING)
    one = served("caller", settings=json.dumps({"word": settings}).encode())
    async with (
        open_egress(reach, resolver=names.resolve, dialler=names.dial) as proxy,
        hosting(tmp_path / "plugins", sandbox=Sandbox(proxy)) as host,
        host.processes["caller"].call(30.0) as launch,
    ):
        launch.enclosure.allow(one.instance, one.settings)
        broker = Broker(host, FixedConnections(one))

        async def call(url: str) -> str:
            (result,) = await broker.transform([group(one, url)], 60.0)
            assert not result.HasField("failure"), result.failure
            return titles(result)[0].removesuffix(settings)

        yield lambda url: asyncio.ensure_future(call(url)), launch.enclosure


async def test_a_plugin_reaches_whom_its_manifest_names_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "localhost", "elsewhere.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names = Names(rebinding_example=[str(PUBLIC), "127.0.0.1"])
    async with (
        provider(certificate) as port,
        calling(tmp_path, Reach(this_machine=True), names, f"https://localhost:{port}") as (call, enclosure),
    ):
        assert await call(f"https://localhost:{port}/a?b=c") == "hello GET /a?b=c HTTP/1.1"
        assert not enclosure.refused
        assert "ProxyError: 403 its manifest does not name it" in await call("https://elsewhere.example/")
        assert "ProxyError: 403" in await call(f"https://localhost:{port + 1}/")
        assert "it is no public address" in await call("http://169.254.169.254/latest/meta-data")
        assert "ProxyError: 502" in await call(f"https://{REBINDING}/"), "the public address, once"
        assert names.dialled[-1] == PUBLIC
        assert "it is no public address" in await call(f"https://{REBINDING}/"), "and now it leads inside"
        assert [(one.address, one.reason) for one in enclosure.refused] == [
            ("rebinding.example:443", subject.INNER),
            ("169.254.169.254:80", subject.INNER),
            (f"localhost:{port + 1}", subject.NOT_NAMED),
            ("elsewhere.example:443", subject.NOT_NAMED),
        ]
        enclosure.forget("instance-caller-1")
        assert "does not name it" in await call(f"https://localhost:{port}/")


async def test_this_machine_is_reached_by_leave_alone(tmp_path: Path) -> None:
    async with (
        provider() as port,
        calling(tmp_path, Reach(), Names(), f"http://127.0.0.1:{port}") as (call, enclosure),
    ):
        assert "it is no public address" in await call(f"http://127.0.0.1:{port}/")
        assert [one.reason for one in enclosure.refused] == [subject.INNER]


async def test_plain_http_goes_where_a_url_of_the_settings_says_so(tmp_path: Path) -> None:
    names = Names()
    async with (
        provider() as port,
        calling(tmp_path, Reach(this_machine=True), names, f"http://127.0.0.1:{port}") as (call, _),
    ):
        assert await call(f"http://127.0.0.1:{port}/x") == "hello GET /x HTTP/1.1"


@asynccontextmanager
async def admitted(
    *egress: Egress, resolver: Resolve = resolve, settings: dict[str, str] | None = None
) -> AsyncIterator[tuple[EgressProxy, Pass]]:
    async with open_egress(Reach(this_machine=True), resolver=resolver) as proxy:
        leave = proxy.admit("one", egress)
        leave.allowed.allow("instance", json.dumps(settings or {}).encode())
        yield proxy, leave


def basic(leave: Pass) -> str:
    return "Basic " + base64.b64encode(f"{leave.name}:{leave.secret}".encode()).decode()


async def ask(
    proxy: EgressProxy, head: str, then: bytes = b"", where: tuple[str, int] = ("127.0.0.1", 0)
) -> bytes:
    """Everything that comes back, until the proxy closes."""
    reader, writer = await asyncio.open_connection(where[0], where[1] or proxy.port)
    try:
        writer.write(head.replace("\n", "\r\n").encode() + then)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionResetError:  # it closed while we still wrote
        return b""
    finally:
        writer.close()


def connect(address: str, authorization: str) -> str:
    return f"CONNECT {address} HTTP/1.1\nhost: {address}\nproxy-authorization: {authorization}\n\n"


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic !!!", "Bearer x", "Basic " + base64.b64encode(b"nobody:nothing").decode()],
)
async def test_who_is_no_launch_gets_nothing(authorization: str) -> None:
    async with admitted(Egress(host="a.example")) as (proxy, leave):
        assert (await ask(proxy, connect("a.example:443", authorization))).startswith(b"HTTP/1.1 407 ")
        guess = "Basic " + base64.b64encode(f"{leave.name}:guess".encode()).decode()
        assert (await ask(proxy, connect("a.example:443", guess))).startswith(b"HTTP/1.1 407 ")
        proxy.dismiss(leave)
        assert (await ask(proxy, connect("a.example:443", basic(leave)))).startswith(b"HTTP/1.1 407 ")
        assert not list(leave.refused)


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\n\n",
        "GET https://a.example/ HTTP/1.1\n\n",
        "CONNECT a.example HTTP/1.1\n\n",
        "CONNECT a.example:0 HTTP/1.1\n\n",
        "CONNECT a@b:443 HTTP/1.1\n\n",
        "CONNECT a:443 HTTP/1.1\n folded: yes\n\n",
        "nonsense\n\n",
        "\n\n",
    ],
)
async def test_what_is_no_request_is_refused(head: str) -> None:
    async with admitted() as (proxy, _):
        assert (await ask(proxy, head)).startswith(b"HTTP/1.1 400 ")


async def test_who_fills_its_own_door_with_silence_shuts_out_nobody_else() -> None:
    async with admitted(Egress(host="a.example")) as (proxy, leave), AsyncExitStack() as stack:
        other = proxy.admit("two", [])
        listener = socket.create_server(("127.0.0.1", 0), backlog=subject.CONNECTIONS * 2)
        where = listener.getsockname()[:2]
        await stack.enter_async_context(await proxy.listen(listener, other))
        for _ in range(subject.CONNECTIONS):
            _, writer = await asyncio.open_connection(*where)
            stack.callback(writer.close)
        assert (await ask(proxy, "", where=where)).startswith(b"HTTP/1.1 503 ")
        assert (await ask(proxy, connect("b.example:443", basic(leave)))).startswith(b"HTTP/1.1 403 ")


async def test_a_door_of_its_own_is_for_one_launch_alone() -> None:
    async with admitted(Egress(host="a.example")) as (proxy, leave):
        other = proxy.admit("two", [])
        listener = socket.create_server(("127.0.0.1", 0))
        where = listener.getsockname()[:2]
        async with await proxy.listen(listener, other):
            stolen = await ask(proxy, connect("a.example:443", basic(leave)), where=where)
            assert stolen.startswith(b"HTTP/1.1 407 ")
            own = await ask(proxy, connect("a.example:443", basic(other)), where=where)
            assert own.startswith(b"HTTP/1.1 403 ")


def test_neither_one_name_nor_all_there_are_fill_the_log() -> None:
    with capture_logs() as logged:
        for name in ("same", "host-{}"):
            leave = Pass("one", "one-1", "secret", 0, AllowList([]), Refusals(SteeredClock()))
            for number in range(5000):
                leave.refuse(f"{name.format(number)}.example:443", subject.NOT_NAMED)
    assert len(logged) < 2 * (subject.TOLD + 13)


async def test_a_head_has_an_end() -> None:
    async with admitted() as (proxy, _):
        assert await ask(proxy, "CONNECT a:443 HTTP/1.1\nx: ", b"x" * (subject.HEAD_BYTES * 4)) == b""


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.write(b"end")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_bytes_that_are_not_tls_need_a_tunnel() -> None:
    async with echo() as port:
        plain = Egress(host="${settings:/host}", ports=[port])
        async with admitted(plain, settings={"host": "127.0.0.1"}) as (proxy, leave):
            answer = await ask(proxy, connect(f"127.0.0.1:{port}", basic(leave)), b"SSH-2.0-x\r\n")
            assert b"SSH" not in answer
            assert [one.reason for one in leave.refused] == [subject.NOT_TLS]
        tunnel = Egress(host="${settings:/host}", ports=[port], tunnel=True)
        async with admitted(tunnel, settings={"host": "127.0.0.1"}) as (proxy, leave):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(connect(f"127.0.0.1:{port}", basic(leave)).replace("\n", "\r\n").encode())
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            said = b"x" * 3_000_000
            writing = asyncio.ensure_future(_say(writer, said))
            assert await reader.read(-1) == said + b"end", "one way ends by itself, the other goes on"
            await writing
            writer.close()
            await until(lambda: leave.connections == 0, 30.0)


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


def greeting(name: str | None) -> bytes:
    """What a real client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def test_plain_http_is_not_spoken_where_only_tls_is_named() -> None:
    async with provider() as port:
        rule = Egress(host="${settings:/url}")
        async with admitted(rule, settings={"url": f"https://127.0.0.1:{port}"}) as (proxy, leave):
            head = f"GET http://127.0.0.1:{port}/ HTTP/1.1\nproxy-authorization: {basic(leave)}\n\n"
            assert (await ask(proxy, head)).startswith(b"HTTP/1.1 403 ")
            assert [one.reason for one in leave.refused] == [subject.PLAIN]


async def test_a_tunnel_for_one_host_carries_no_greeting_for_another() -> None:
    async with echo() as port:
        rule = Egress(host="${settings:/host}", ports=[port])
        async with admitted(rule, settings={"host": "localhost"}) as (proxy, leave):
            for name in ("other.example", None):
                hello = greeting(name)
                assert hello not in await ask(proxy, connect(f"localhost:{port}", basic(leave)), hello)
            assert [(one.reason, one.count) for one in leave.refused] == [(subject.OTHER_NAME, 2)]


def test_a_name_is_found_however_the_greeting_is_cut() -> None:
    hello = greeting("a.example")
    assert server_name(hello) == "a.example"
    assert all(server_name(hello[:length]) is None for length in range(len(hello) - 200))
    body = hello[5:]
    split = b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2) + part
        for part in (body[:3], body[3:90], body[90:])
    )  # fmt: skip
    assert server_name(split) == "a.example"
    assert server_name(greeting(None)) == ""


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader_of_greetings(data: bytes) -> None:
    for start in (data, b"\x16\x03\x01" + data, greeting("a.example")[:60] + data):
        with suppress(NotTlsError):
            assert isinstance(server_name(start), str | None)


def test_a_greeting_has_an_end() -> None:
    with pytest.raises(NotTlsError):
        server_name((b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * LONGEST)[: LONGEST + 1])


@pytest.mark.parametrize(
    ("host", "settings", "asked", "found"),
    [
        ("api.example", {}, "API.example.", True),
        ("api.example", {}, "x.api.example", False),
        ("*.api.example", {}, "x.api.example", True),
        ("*.api.example", {}, "x.y.api.example", False),
        ("*.api.example", {}, "api.example", False),
        ("*.api.example", {}, ".api.example", False),
        ("${settings:/url}", {"url": "https://git.example/api"}, "git.example", True),
        ("${settings:/url}", {"url": "git.example"}, "git.example", True),
        ("${settings:/url}", {"url": "https://git.example:8443/"}, "git.example", False),
        ("${settings:/urls}", {"urls": ["https://a.example", "https://b.example"]}, "b.example", True),
        ("${settings:/a/b}", {"a": {"b": "c.example"}}, "c.example", True),
        ("${settings:/a~1b}", {"a/b": "c.example"}, "c.example", True),
        ("logs.${settings:/r}.aws.example", {"r": "eu-1"}, "logs.eu-1.aws.example", True),
        ("logs.${settings:/r}.aws.example", {"r": "evil.example/"}, "logs.evil.example/.aws.example", False),
        ("${settings:/url}", {"url": "*.example"}, "x.example", False),
        ("${settings:/url}", {"url": 5}, "5", False),
        ("${settings:/url}", {}, "", False),
        ("${settings:/url}", {"url": "https://[::1"}, "::1", False),
    ],
)
def test_what_a_manifest_names(host: str, settings: dict[str, object], asked: str, found: object) -> None:
    allowed = AllowList([Egress(host=host)])
    allowed.allow("one", json.dumps(settings).encode())
    assert (allowed.find(asked, 443) is not None) is found
    assert allowed.find(asked, 22) is None


def test_each_instance_brings_its_own_and_takes_it_along() -> None:
    allowed = AllowList([Egress(host="${settings:/url}")])
    allowed.allow("one", b'{"url": "https://a.example"}')
    allowed.allow("two", b'{"url": "https://a.example"}')
    allowed.forget("one")
    assert allowed.find("a.example", 443)
    allowed.allow("two", b'{"url": "https://b.example"}')
    assert not allowed.find("a.example", 443)
    assert allowed.find("b.example", 443)
    allowed.allow("two", b"no json")
    assert not allowed.find("b.example", 443)


def test_refusals_are_counted_and_few() -> None:
    clock = SteeredClock()
    refusals = Refusals(clock)
    for number in (*range(KEPT + 5), 7):
        refusals.add(f"host-{number}\n{'x' * 300}:443", "why")
    kept = list(refusals)
    assert len(kept) == KEPT
    assert kept[0].address.startswith("host-7?x")
    assert (kept[0].count, kept[1].count) == (2, 1)
    assert all(len(one.address) <= 200 for one in kept)
