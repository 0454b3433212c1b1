"""An installation that cannot start says so in one clear sentence, exits with 2 and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.suite import Standing, tieline, up


async def refused(data: Path, *arguments: str) -> str:
    code, out, err = await tieline("up", "--data", str(data), *(arguments or ("--http", "127.0.0.1:0")))
    assert code == 2, err
    assert out == ""
    complaint = [line for line in err.splitlines() if line not in ("stopping", "stopped")]
    assert len(complaint) == 1, err
    assert complaint[0].startswith("tieline up: ")
    return complaint[0]


async def test_a_port_in_use(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = await refused(short_dir / "data", "--http", address)
    assert f"{address} cannot be listened on: another process listens there" in said
    assert "--http" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[up", "it is not TOML"),
        ("[up]\nhtpp = 'x'", "there is no setting `htpp` (did you mean `http`?)"),
        ("[up]\nhttp = 'nowhere'", "'nowhere' is not HOST:PORT"),
        ("[up]\nplugins = ['/not/there']", "/not/there is not a directory"),
        ("[mapper]\nlog_levle = 'info'", "[mapper]: there is no setting `log_levle`"),
        ("[up]\nnats_url = 'hunter2'", "[up]: `nats_url`: a NATS URL is"),
        ("[gateway]\ndrain_seconds = 1000", "`drain_seconds`: expected `float` <= 60"),
    ],
)
async def test_broken_settings(short_dir: Path, text: str, words: str) -> None:
    (short_dir / "settings.toml").write_text(text)
    said = await refused(short_dir, "--http", "127.0.0.1:0")
    assert words in said
    assert "settings.toml" in said or "plugins" in said


@pytest.mark.parametrize(
    "variable",
    [
        "TIELINE_DATABSE_URL",
        "TIELINE_DATABASE_URL",
        "TIELINE_UP_DATABASE_URL",
        "TIELINE_NATS_URL",
        "TIELINE_MAPPR_LOG_LEVEL",
        "TIELINE_MAPPER_LOG_LEVLE",
    ],
)
async def test_a_misspelt_variable_or_value(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "x")
    assert variable in await refused(short_dir / "data")


async def test_an_environment_that_overrules_what_up_chooses(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIELINE_MAPPER_LISTEN", "127.0.0.1:7413")
    assert "TIELINE_MAPPER_LISTEN: `tieline up` chooses this itself" in await refused(short_dir / "data")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999", ":80"])
async def test_an_address_that_is_none(short_dir: Path, address: str) -> None:
    code, _, err = await tieline("up", "--data", str(short_dir / "data"), "--http", address)
    assert code == 2
    assert "argument --http" in err


async def test_a_directory_that_cannot_be(short_dir: Path) -> None:
    (short_dir / "file").touch()
    assert "Not a directory" in await refused(short_dir / "file" / "data")
    assert str(short_dir / "file") in await refused(short_dir / "file")
    # Nobody may write there, not even root.
    assert "/proc/sys" in await refused(Path("/proc/sys/data"))


async def test_a_directory_in_use(shared: Standing) -> None:
    said = await refused(shared.data)
    assert f"in use by process {shared.pid}" in said
    assert (await tieline("status", "--data", str(shared.data)))[0] == 0


async def test_a_password_that_does_not_fit_its_cluster(short_dir: Path) -> None:
    async with up(short_dir):
        pass
    (short_dir / "postgres/password").write_text("changed\n")
    assert "password" in await refused(short_dir)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("admin-token", b""),
        ("admin-token", b"\xff\xfe"),
        ("database-roles.json", b"{"),
        ("database-roles.json", b"[1]"),
    ],
)
async def test_a_broken_key_file(short_dir: Path, name: str, content: bytes) -> None:
    broken = short_dir / "keys" / name
    broken.parent.mkdir(mode=0o700)
    broken.write_bytes(content)
    assert f"{broken} is broken" in await refused(short_dir)
    assert broken.read_bytes() == content


async def test_external_engines_that_are_not_there(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIELINE_DATABASE_URL", f"postgresql://u:hunter2@/db?host={short_dir}")
    said = await refused(short_dir / "data")
    assert "TIELINE_DATABASE_URL" in said
    assert "hunter2" not in said
    monkeypatch.setenv("TIELINE_DATABASE_URL", "mysql://u:hunter2@localhost/db")
    assert "hunter2" not in await refused(short_dir / "data")


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A file system of 24 MiB, which is less than a cluster takes."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system to fill")
    place = short_dir / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system to fill")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    said = await refused(small_disk / "data")
    assert f"the disk that holds {small_disk}" in said
    assert "is full" in said
    (small_disk / "filler").write_bytes(b"x")
    assert "is full" in await refused(small_disk / "data")
