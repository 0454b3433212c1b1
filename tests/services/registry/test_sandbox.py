"""A plugin that means harm, kept in; and an honest one, which does not notice."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from foundation.net.addresses import Reach
from foundation.process.confined import USERS, missing
from foundation.process.supervised import State
from foundation.process.testing import alive, gone, until
from services.registry.broker.broker import Broker
from services.registry.broker.serving import FixedConnections, Served
from services.registry.egress.proxy import open_egress
from services.registry.host.host import Host
from services.registry.host.places import hidden
from services.registry.host.process import PluginProcess
from services.registry.host.sandbox import Sandbox, Wanted
from tests.services.registry.plugins import CODE, group, hosting, make_plugin, served, titles
from tests.services.registry.tls import make_certificate, provider
from tieline.plugin.v1.manifest_pb2 import Manifest

EVALUATING = CODE.replace("import os,", "import httpx, os, pathlib, socket, subprocess,").replace(
    "match word:",
    """try:
            word = str(eval(word))
        except Exception as error:
            word = f"{{type(error).__name__}}: {{error}}"
        match word:""",
)

RINGS = "(lambda c: (c.CDLL(None, use_errno=True).syscall(425, 8, 0), c.get_errno()))(__import__('ctypes'))"
"""io_uring would make sockets past every question."""
EGRESS = """
[[egress]]
host = "${settings:/word}"
"""


class Villain:
    """Evaluates what it is told and says what came of it."""

    def __init__(self, host: Host, one: Served) -> None:
        self.process: PluginProcess = host.processes[one.plugin]
        self._one = one
        self._broker = Broker(host, FixedConnections(one))

    async def tries(self, code: str) -> str:
        delivery = json.dumps({"say": code, "id": "one"}).encode()
        (result,) = await self._broker.transform([group(self._one, delivery)], 60.0)
        assert not result.HasField("failure"), result.failure
        word = str(json.loads(self._one.settings).get("word", ""))
        return titles(result)[0].removesuffix(word)


@asynccontextmanager
async def villain(
    tmp_path: Path, wanted: Wanted, *private: Path, settings: bytes = b"{}", reach: Reach | None = None
) -> AsyncIterator[Villain]:
    folder = make_plugin(tmp_path / "plugins", "villain", rest=EGRESS, code=EVALUATING)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)  # whatever keeps it from writing is not the mode
    one = served("villain", settings=settings)
    async with open_egress(reach or Reach()) as proxy:
        sandbox = Sandbox(proxy, wanted, hidden(*map(str, private)))
        async with hosting(tmp_path / "plugins", sandbox=sandbox) as host:
            made = Villain(host, one)
            async with made.process.call(30.0) as launch:
                launch.enclosure.allow(one.instance, one.settings)
            yield made


@pytest.mark.usefixtures("confinable")
async def test_a_confined_plugin_reaches_nothing_of_ours(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    key = data / "root.key"
    key.write_text("canary")
    key.chmod(0o600)
    lonely = tmp_path / "lonely.token"
    lonely.write_text("canary")
    async with provider() as port, villain(tmp_path, Wanted.CONFINED, data, lonely) as plugin:
        pid = plugin.process.pid
        assert pid is not None
        assert missing(pid) == ""
        assert missing(os.getpid()) != ""
        refused: dict[str, str | tuple[str, ...]] = {
            f"open({str(key)!r}).read()": "FileNotFoundError",
            f"open({str(lonely)!r}).read()": "",
            "open('plugin.py', 'a')": "OSError: [Errno 30] Read-only",
            "os.remove('plugin.toml')": "OSError: [Errno 30] Read-only",
            "os.mkdir('/usr/x')": ("OSError: [Errno 30] Read-only", "PermissionError"),
            f"socket.create_connection(('127.0.0.1', {port}), 20)": "ConnectionRefusedError",
            "socket.create_connection(('192.0.2.1', 443), 20)": "OSError: [Errno 101] Network is unreachable",
            "socket.socket(40, socket.SOCK_STREAM)": "OSError: [Errno 97] Address family not supported",
            f"__import__('resource').prlimit({os.getpid()}, 7, (10, 10))": "PermissionError",
            "socket.socket(38, socket.SOCK_SEQPACKET)": "OSError: [Errno 97] Address family not supported",
            RINGS: "(-1, 38)",
            "__import__('resource').prlimit(0, 7) > (1, 1)": "True",
            "socket.socket(socket.AF_INET6).family": "10",
            "sorted(os.listdir('/run'))": "[]",
            f"os.kill({os.getpid()}, 0)": "PermissionError",
            f"open('/proc/{os.getpid()}/environ').read()": "PermissionError",
            f"os.listdir('/proc/{os.getpid()}/root')": "PermissionError",
            "os.setuid(0)": "PermissionError",
            "os.chroot('/')": "PermissionError",
            "open('/etc/shadow').read()": "PermissionError",
            "open('/dev/mem')": "FileNotFoundError",
        }
        for code, answer in refused.items():
            said = await plugin.tries(code)
            assert said.startswith(answer), code
            assert "canary" not in said
        privileges = "[line for line in open('/proc/self/status') if 'NoNewPrivs' in line][0].split()"
        assert await plugin.tries(privileges) == "['NoNewPrivs:', '1']"
        assert await plugin.tries("subprocess.run(['unshare', '-U', 'true']).returncode") != "0"
        assert await plugin.tries("os.open('/proc/self/root/..', os.O_RDONLY) and os.getcwd()") == str(
            tmp_path / "plugins" / "villain"
        )
        assert Path(tmp_path / "plugins" / "villain" / "plugin.py").read_text().startswith("\nimport")


@pytest.mark.usefixtures("confinable")
async def test_the_temporary_files_of_others_are_not_there_and_its_own_are(
    tmp_path: Path, short_dir: Path
) -> None:
    async with villain(tmp_path, Wanted.CONFINED) as plugin:
        stranger = short_dir / "theirs"
        stranger.write_text("canary")
        assert await plugin.tries(f"os.path.exists({str(stranger)!r})") == "False"
        mine = short_dir.parent / "mine"
        assert await plugin.tries(f"pathlib.Path({str(mine)!r}).write_text('mine')") == "4"
        assert await plugin.tries(f"pathlib.Path({str(mine)!r}).read_text()") == "mine"
        assert not mine.exists()
        assert await plugin.tries("os.environ['TMPDIR']") == str(short_dir.parent)


@pytest.mark.usefixtures("confinable")
async def test_an_honest_plugin_finds_its_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    certificate.chmod(0o644)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with provider(certificate) as port:
        url = f"https://localhost:{port}"
        settings = json.dumps({"word": url}).encode()
        async with villain(
            tmp_path, Wanted.CONFINED, settings=settings, reach=Reach(this_machine=True)
        ) as plugin:
            assert await plugin.tries(f"httpx.get('{url}/x', timeout=20).text") == "hello GET /x HTTP/1.1"
            assert "does not name it" in await plugin.tries("httpx.get('https://other.example', timeout=20)")
            async with plugin.process.call(30.0) as launch:
                assert [one.address for one in launch.enclosure.refused] == ["other.example:443"]
                assert launch.enclosure.confined
                assert plugin.process.explanation == "serves"
            plugin.process.kill()
            await until(lambda: plugin.process.state is not State.READY, 30.0)
            assert await plugin.tries("1 + 1") == "2", "the next life is confined as well"


@pytest.mark.usefixtures("confinable")
async def test_what_it_leaves_behind_ends_with_it_whatever_it_did_to_hide(tmp_path: Path) -> None:
    async with villain(tmp_path, Wanted.CONFINED) as plugin:
        hide = "subprocess.Popen(['sleep', '600'], env={}, start_new_session=True).pid"
        left = int(await plugin.tries(hide))
        assert alive(left)
        plugin.process.kill()
        await gone([left], 30.0)
        also = int(await plugin.tries(hide))
    await gone([also], 30.0)


async def test_what_is_not_confined_says_so(tmp_path: Path) -> None:
    async with villain(tmp_path, Wanted.NONE) as plugin, plugin.process.call(30.0) as launch:
        assert not launch.enclosure.confined
        assert plugin.process.explanation == "serves"
        assert plugin.process.pid is not None
        assert missing(plugin.process.pid).startswith("it shares namespaces with us")


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user already")
async def test_a_folder_for_root_alone_is_not_confined_and_refused_where_it_must_be(tmp_path: Path) -> None:
    folder = make_plugin(tmp_path / "plugins", "villain", rest=EGRESS, code=EVALUATING)
    folder.chmod(0o700)
    async with open_egress(Reach()) as proxy:
        async with (
            hosting(tmp_path / "plugins", sandbox=Sandbox(proxy, Wanted.AUTO)) as host,
            host.processes["villain"].call(30.0) as launch,
        ):
            assert not launch.enclosure.confined
            explanation = host.processes["villain"].explanation
            assert explanation.startswith("serves; not confined: ")
            assert "only root may read" in explanation
        async with hosting(tmp_path / "plugins", sandbox=Sandbox(proxy, Wanted.CONFINED)) as host:
            process = host.processes["villain"]
            await until(lambda: "only root may read" in process.trouble, 30.0)
            assert process.pid is None


async def test_every_plugin_is_somebody_else() -> None:
    async with open_egress(Reach()) as proxy:
        sandbox = Sandbox(proxy, Wanted.AUTO)
        manifests = [Manifest(name=name) for name in ("one", "two")]
        users = [sandbox.enclose(manifest).user for manifest in manifests]
        assert users == [sandbox.enclose(manifest).user for manifest in manifests]
        apart = [sandbox.enclose(manifests[0], cell).user for cell in ("", "a1", "b2")]
        assert apart[0] == users[0]
        if os.geteuid() == 0:
            assert len({*users, *apart}) == 4
            assert {*users, *apart} <= set(USERS)
            crowd = {sandbox.enclose(manifests[0], str(number)).user for number in range(len(USERS) + 2)}
            assert crowd <= set(USERS), "who comes late shares one"
