"""The parts of the command that need nothing running."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.ask import ask
from cli.installation import Installation
from cli.logfile import LIMIT, LogFile
from cli.options import parse
from foundation.process.output import Line
from foundation.process.private import write_private
from tests.scenarios.suite import tieline


def test_shared_options_count_before_and_after_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIELINE_ENDPOINTS", raising=False)
    for arguments in (["--data", "/x", "--json", "status"], ["status", "--json", "--data", "/x"]):
        options = parse(arguments)
        assert (options.data, options.json, options.endpoints) == (
            Path("/x"),
            True,
            Path("/x/run/endpoints.json"),
        )
    assert parse(["status"]).data == Path(".tieline")
    monkeypatch.setenv("TIELINE_ENDPOINTS", "/elsewhere/endpoints.json")
    assert parse(["status"]).endpoints == Path("/elsewhere/endpoints.json")


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["status", "--what"], ["up", "--http"], ["status", "--data", ""]]
)
async def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    code, out, err = await tieline(*arguments)
    assert (code, out) == (2, "")
    assert "usage: tieline" in err


async def test_output_nobody_reads_to_the_end_is_no_fault(short_dir: Path) -> None:
    shell = f"{sys.executable} -m cli doctor --data '{short_dir}/none' | true; exit ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", shell, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    _, err = await process.communicate()
    assert b"Traceback" not in err


async def test_doctor_describes_what_is_wrong(short_dir: Path) -> None:
    (short_dir / "settings.toml").write_text("[up]\nhttp = 'nowhere'\n")
    (short_dir / "keys").mkdir(mode=0o755)
    code, out, err = await tieline("doctor", "--json", "--data", str(short_dir))
    assert (code, err) == (1, "")
    bad = {item["subject"]: item for item in json.loads(out)["items"] if not item["fine"]}
    assert set(bad) == {"keys", "settings"}
    assert "chmod go=" in bad["keys"]["remedy"]
    assert "'nowhere' is not HOST:PORT" in bad["settings"]["text"]


async def test_doctor_is_content_with_nothing(short_dir: Path) -> None:
    code, out, _ = await tieline("doctor", "--data", str(short_dir / "none"))
    assert code == 0, out
    assert "will be made by the first `tieline up`" in out


async def test_doctor_knows_engines_that_are_not_ours(short_dir: Path) -> None:
    (short_dir / "settings.toml").write_text("[up]\nnats_url = 'nats://u:hunter2@127.0.0.1:1'\n")
    env = {"TIELINE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1/d"}
    _, out, _ = await tieline("doctor", "--json", "--data", str(short_dir), env=env)
    said = {item["subject"]: item["text"] for item in json.loads(out)["items"]}
    assert said["postgres"].startswith("external")
    assert said["nats"].startswith("external")
    assert "hunter2" not in out


async def test_endpoints_that_are_not_there_are_blamed_on_who_names_them(short_dir: Path) -> None:
    code, _, err = await tieline("status", env={"TIELINE_ENDPOINTS": str(short_dir / "none.json")})
    assert code == 2
    assert "TIELINE_ENDPOINTS: nothing answers where" in err
    assert "none.json" in err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"gateway": 1}', '{"gateway": "http://no-port"}'])
async def test_status_of_a_broken_endpoints_file(short_dir: Path, text: str) -> None:
    path = short_dir / "endpoints.json"
    path.write_text(text)
    code, _, err = await tieline("status", env={"TIELINE_ENDPOINTS": str(path)})
    assert (code, err.count("\n")) == (2, 1)
    assert str(path) in err


def test_a_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data")
    installation.prepare()
    installation.keys.ensure_tokens()
    first = installation.keys.admin_token.read_text()
    installation.keys.ensure_tokens()
    assert installation.keys.admin_token.read_text() == first
    assert stat.S_IMODE(installation.keys.admin_token.stat().st_mode) == 0o600


def test_passwords_are_kept_and_new_roles_get_theirs(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data")
    installation.prepare()
    first = installation.keys.passwords(lambda: {"a": "1"})
    assert installation.keys.passwords(lambda: {"a": "2", "b": "3"}) == first | {"b": "3"}
    assert installation.keys.passwords(lambda: {"b": "4"}) == first | {"b": "3"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\udcff")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_is_bounded(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log")
    line = Line("a", "stderr", "x" * (1024 * 1024 - 1))
    for _ in range(40):
        log(line)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["a.log.1"] == LIMIT + 1024 * 1024
    assert sizes["a.log"] < LIMIT
    assert stat.S_IMODE((tmp_path / "a.log").stat().st_mode) == 0o600
    log(line)


def test_a_full_log_that_was_tidied_away_is_begun_again(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log")
    log(Line("a", "stderr", "x" * (LIMIT + 1)))
    log.path.unlink()
    log(Line("a", "stderr", "after"))
    log.close()
    assert log.path.read_text() == "after\n"


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'HTTP/1.1 200 OK\r\nA: b\r\n\r\n{"status": "ready"}', 200),
        (b"HTTP/1.1 503 No\r\n\r\n{}", 503),
        (b"HTTP/1.1 200 OK\r\n\r\nnot json", 0),
        (b"SSH-2.0-hello\r\n", 0),
        (b"", 0),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"{" * 200_000, 0),
    ],
)
async def test_whatever_answers_is_understood_or_is_nobody(answer: bytes, status: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In two pieces, cut where it hurts.
        await reader.readuntil(b"\r\n\r\n")
        for piece in (answer[:20], answer[20:]):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async with serving(serve) as port:
        assert (await ask("127.0.0.1", port)).status == status


async def test_who_never_answers_is_nobody() -> None:
    release = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with serving(serve) as port:
        assert (await ask("127.0.0.1", port, within=0.05)).status == 0
        release.set()
